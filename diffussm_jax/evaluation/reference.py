"""What samples are compared with, in an npz of ADM's form, made from real images.

mu, sigma        moments of the pool features
mu_s, sigma_s    moments of the spatial features, where the extractor has some
arr_0            images, uint8 [n h w c], for precision and recall
facts            JSON of the images' origin and of the extractor; ADM's files lack it
"""

import dataclasses
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from diffussm_jax.config import Config
from diffussm_jax.config.parsing import from_json
from diffussm_jax.config.sizes import size_name
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import Extractor
from diffussm_jax.evaluation.image_sets import ImageSet, NpzImages, Rows, batches_of
from diffussm_jax.evaluation.metrics import NEIGHBOURS, Moments
from diffussm_jax.evaluation.statistics import Statistics, measure
from diffussm_jax.files import NPZ_ERRORS, replacing, sha256_of
from diffussm_jax.files.paths import as_path
from diffussm_jax.sampling.images import save_npz
from diffussm_jax.workdir.data_facts import read_data_facts

logger = logging.getLogger(__name__)

_BATCH = 256  # images in memory at a time
FIELD = "config.evaluate.reference"
MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        pool: moments of the pool features.
        spatial: moments of the spatial features; None where there are none.
        features: the pool features of the file's images; None where it has none.
        image_shape: (h, w, c) of these images.
        facts: JSON of the file and what is in it.
    """

    pool: Moments
    spatial: Moments | None
    features: Float32[np.ndarray, "n d"] | None
    image_shape: tuple[int, ...] | None
    facts: dict[str, Any]

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise UserError unless images to score have the shape (h, w, c) of the file's own.

        Features need not tell: Inception enlarges or reduces what it sees to one size.
        """
        if self.image_shape not in (None, shape):
            theirs, ours = (" x ".join(map(str, x)) for x in (self.image_shape, shape))
            raise UserError(
                f"{FIELD}: the images of {self.facts['file']} are {theirs} (height, width, "
                f"channels), and those to score {ours}: bring these to that size, or make another "
                "reference, with --mode=refstats"
            )


def read_reference(path: Path, extractor: Extractor, mesh: Mesh, *, batch_size: int) -> Reference:
    """Read a reference: its moments, or where it has none those of its images.

    Raises:
        UserError: the file is missing, of another form, or of another extractor's features.
    """
    arrays, origin, has_images = _read(path)
    _require_same_features(path, origin, extractor)
    measured = shape = None
    if has_images:
        images = NpzImages(path, field=FIELD)
        if len(images) <= NEIGHBOURS:
            least = NEIGHBOURS + 1
            raise UserError(f"{FIELD}: {path} has {len(images)} images, and it takes {least}")
        measured = measure(extractor, images, mesh, batch_size=batch_size, keep_features=True)
        shape = images.shape
    # Without facts the moments are ADM's, of Inception.
    has_moments = "mu" in arrays and (origin or extractor.facts["features"] == "inception")
    if has_moments:
        pool = _moments(arrays, "pool")
        spatial = _moments(arrays, "spatial") if "mu_s" in arrays else None
    elif measured is not None:
        pool, spatial = measured.pool, measured.spatial
    else:
        raise UserError(
            f"{FIELD}: {path} has neither moments of {extractor.facts['features']} features nor "
            "images in arr_0"
        )
    facts = {
        "file": path.name,
        "sha256": sha256_of(path),
        "of": origin,
        "num_images": 0 if measured is None else measured.num,
        "moments_of": "file" if has_moments else "arr_0",
    }
    features = None if measured is None else measured.features
    return Reference(pool, spatial, features, shape, facts)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    """The moments of a reference, its facts, and whether it has images."""
    try:
        # Not np.load, which reads an .npy too, and takes anything else for a pickle.
        with path.open("rb") as data, np.lib.npyio.NpzFile(data) as file:
            present = set(file.files)
            pairs = [pair for pair in MOMENTS.values() if pair[0] in present]
            arrays = {name: np.asarray(file[name]) for pair in pairs for name in pair}
            facts = from_json(dict, str(file["facts"])) if "facts" in present else {}
        for mean, covariance in pairs:
            _check_moments(arrays[mean], arrays[covariance])
    except FileNotFoundError as error:
        raise UserError(
            f"{FIELD}: there is no {path}: make it with --mode=refstats, or name "
            "an npz of ADM's form"
        ) from error
    except NPZ_ERRORS as error:
        raise UserError(f"{FIELD}: {path} cannot be read as an npz: {error}") from error
    return arrays, facts, "arr_0" in present


def _check_moments(mean: np.ndarray, covariance: np.ndarray) -> None:
    dim = mean.shape[:1]
    if not dim or mean.shape != dim or covariance.shape != dim * 2:
        raise ValueError(
            f"its moments must be [d] and [d d], got {list(mean.shape)} and "
            f"{list(covariance.shape)}"
        )
    if not all(x.dtype.kind == "f" and np.isfinite(x).all() for x in (mean, covariance)):
        raise ValueError("its moments are not all finite floats")


def _moments(arrays: dict[str, np.ndarray], which: str) -> Moments:
    mean, covariance = (arrays[name].astype(np.float64) for name in MOMENTS[which])
    return Moments(mean, covariance)


def _require_same_features(path: Path, origin: dict[str, Any], extractor: Extractor) -> None:
    theirs = origin.get("extractor", extractor.facts)
    if not isinstance(theirs, dict):
        theirs = {}
    for name, value in extractor.facts.items():
        if theirs.get(name) != value:
            raise UserError(
                f"{FIELD}: {path} was made with {name} = {theirs.get(name)!r}, "
                f"and now it is {value!r}: make another with --mode=refstats"
            )


def write_reference(
    path: Path, statistics: Statistics, images: ImageSet, rows: Rows, facts: dict[str, Any]
) -> None:
    """Write a reference: moments, facts and the images at the rising positions `rows`.

    One batch of images is in memory at a time, and the file appears when it is complete.
    """
    arrays = {"facts": np.asarray(json.dumps(facts))}
    for which, moments in (("pool", statistics.pool), ("spatial", statistics.spatial)):
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
    """The path of the reference that the config names, or of the work directory's own.

    Raises:
        UserError: there is neither.
    """
    if config.evaluate.reference is not None:
        return as_path(config.evaluate.reference)
    if workdir is None:
        raise UserError(f"{FIELD}: name a file, or give the --workdir that keeps it")
    features = config.evaluate.features.replace(":", "-")
    size = config.drawn_size
    at_size = "" if size is None else f"-{size_name(size)}"
    return workdir / "evaluation" / f"reference-{features}{at_size}.npz"


def note_other_images(reference: Reference, workdir: Path) -> None:
    """Say on the log where a reference is of other images than the run in `workdir` began with."""
    run, origin = read_data_facts(workdir), reference.facts["of"]
    if run.fingerprint is None or "fingerprint" not in origin:
        return
    if origin["fingerprint"] != run.fingerprint.sha256:
        logger.info(
            "%s is of other images (%s, split %s) than the run learnt from (%s)",
            reference.facts["file"],
            origin.get("source"),
            origin.get("split"),
            run.source,
        )
