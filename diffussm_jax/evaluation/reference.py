"""What samples are compared with: moments of features of real images, and some of the images, in an npz of ADM's form.

mu, sigma        of the pool features
mu_s, sigma_s    of the spatial ones, where the extractor has some
arr_0            images, uint8, for precision and recall
facts            JSON of where they are from and of the extractor; ADM's files lack it
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import Extractor
from diffussm_jax.evaluation.image_sets import ImageSet, NpzImages, Rows, batches_of
from diffussm_jax.evaluation.metrics import Moments
from diffussm_jax.evaluation.statistics import Statistics, measure
from diffussm_jax.files import replacing, sha256_of
from diffussm_jax.sampling.images import save_npz

_BATCH = 256  # images in memory at a time
MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Reference:
    """A reference file, checked against the extractor.

    Attributes:
        pool, spatial: moments; those of `arr_0` where the file has none.
        features: of the images in `arr_0`; None where it has none.
        facts: JSON of the file and what is in it.

    Raises:
        UserError: the file is missing, of another form, or of another extractor's features.
    """

    def __init__(self, path: Path, extractor: Extractor, mesh: Mesh, *, batch_size: int):
        arrays, own = _read(path)
        self.facts: dict[str, Any] = {"file": path.name, "sha256": sha256_of(path)}
        self.facts |= {"of": own}
        _require_same_features(path, own, extractor)
        images = NpzImages(path) if "arr_0" in arrays else None
        found = None
        if images is not None:
            found = measure(extractor, images, mesh, batch_size=batch_size, keep_features=True)
        self.features = None if found is None else found.features
        self.facts["num_images"] = 0 if found is None else found.num
        # Without facts the moments are ADM's, of Inception.
        usable = own or extractor.facts["features"] == "inception"
        if usable and "mu" in arrays:
            self.pool = _moments(arrays, "pool")
            self.spatial = _moments(arrays, "spatial") if "mu_s" in arrays else None
        elif found is not None:
            self.pool, self.spatial = found.pool, found.spatial
        else:
            raise UserError(
                f"{path} has neither moments of {extractor.facts['features']} features nor images in arr_0"
            )
        self.facts["moments_of"] = "file" if usable and "mu" in arrays else "arr_0"


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The small arrays of a reference, with a place holder for its images, and its facts."""
    try:
        with np.load(path) as file:
            names = set(file.files)
            wanted = names & {name for pair in MOMENTS.values() for name in pair}
            arrays = {name: np.asarray(file[name]) for name in wanted}
            facts = json.loads(str(file["facts"])) if "facts" in names else {}
    except FileNotFoundError as error:
        raise UserError(
            f"config.evaluate.reference: there is no {path}: make it with --mode=refstats, or name an npz of ADM's form"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"config.evaluate.reference: {path} cannot be read: {error}") from error
    if "arr_0" in names:
        arrays["arr_0"] = np.empty(0)
    return arrays, facts


def _moments(arrays: dict[str, np.ndarray], which: str) -> Moments:
    mean, covariance = (arrays[name].astype(np.float64) for name in MOMENTS[which])
    return Moments(mean, covariance)


def _require_same_features(path: Path, own: dict, extractor: Extractor) -> None:
    theirs = own.get("extractor", extractor.facts)
    for name, value in extractor.facts.items():
        if theirs.get(name) != value:
            raise UserError(
                f"config.evaluate.reference: {path} was made with {name} = {theirs.get(name)!r}, and now it is "
                f"{value!r}: make another with --mode=refstats"
            )


def write_reference(
    path: Path, found: Statistics, images: ImageSet, rows: Rows, facts: dict[str, Any]
) -> None:
    """Write a reference with the images at rising positions, read a batch at a time; the file appears when it is whole."""
    arrays = {"facts": np.asarray(json.dumps(facts))}
    for which, moments in (("pool", found.pool), ("spatial", found.spatial)):
        if moments is not None:
            pair = moments.mean, moments.covariance
            arrays |= dict(zip(MOMENTS[which], pair))
    shape = len(rows), *images.read(rows[:1]).shape[1:]
    batches = (images.read(rows[batch]) for batch in batches_of(len(rows), _BATCH))
    with replacing(path) as temporary:
        save_npz(batches, temporary, shape=shape, labels=None)
        with zipfile.ZipFile(temporary, "a") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def reference_path(config: Config, workdir: Path | None) -> Path:
    """Where the reference is: what the config names, or the work directory's own.

    Raises:
        UserError: there is neither.
    """
    if config.evaluate.reference is not None:
        return Path(os.path.expanduser(config.evaluate.reference))
    if workdir is None:
        raise UserError(
            "config.evaluate.reference: name a file, or give the --workdir that keeps it"
        )
    features = config.evaluate.features.replace(":", "-")
    return workdir / "evaluation" / f"reference-{features}.npz"
