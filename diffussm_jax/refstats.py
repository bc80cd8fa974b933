"""`--mode=refstats`: statistics of the features of real images, the reference of all scores."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from diffussm_jax.config import Config
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.parsing import from_json
from diffussm_jax.data.names import portable_name
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.features import make_extractor
from diffussm_jax.evaluation.image_sets import SourceImages
from diffussm_jax.evaluation.reference import reference_path, write_reference
from diffussm_jax.evaluation.statistics import measure
from diffussm_jax.files import NPZ_ERRORS, seekable, writing_to
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.workdir.lock import held
from diffussm_jax.workdir.ownership import require_ours

logger = logging.getLogger(__name__)


def refstats(config: Config, workdir: Path | None) -> None:
    """Write the reference of the config's training split.

    It holds the moments of all images of the split, and the first `evaluate.reference_images` of a
    shuffle of them.

    Raises:
        UserError: the data or the extractor does not fit the config, or the file exists and is
            another reference.
    """
    path = reference_path(config, workdir)
    if workdir is not None:
        require_ours(workdir)
    named = f"config.evaluate.reference: {path}"
    with held(path.parent, named=named, file=f".{path.name}.lock"):
        _write(config, workdir, path)


def _write(config: Config, workdir: Path | None, path: Path) -> None:
    extractor = make_extractor(config, workdir)
    images = SourceImages(as_drawn(config.sample, config), config.data.split)
    num_kept = min(config.evaluate.reference_images, len(images))
    facts = images.facts() | {
        "data.name": portable_name(config.data.name),
        "num": len(images),
        "num_kept": num_kept,
        "extractor": extractor.facts,
    }
    if _is_there(path, facts):
        logger.info("%s is there already", path)
        return
    logger.info("statistics of %d images of %s", len(images), config.data.name)
    batch_size = config.evaluate.batch_size
    statistics = measure(extractor, images, make_mesh(), batch_size=batch_size, keep_features=False)
    if not is_first():
        return
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:num_kept])
    with writing_to(path, field="config.evaluate.reference"):
        write_reference(path, statistics, images, rows, facts)
    logger.info("wrote %s, with %d of the images", path, num_kept)


def _is_there(path: Path, facts: dict[str, Any]) -> bool:
    """Whether the file has these facts; raise UserError, not to overwrite it, if it has others."""
    if not path.exists():
        return False
    try:
        with np.load(seekable(path)) as file:
            present = from_json(dict, str(file["facts"]))
    except NPZ_ERRORS:
        present = None
    if present == json.loads(json.dumps(facts)):  # lists for tuples, as they were read
        return True
    raise UserError(
        f"config.evaluate.reference: {path} is there and is another reference: remove it or name "
        "another file"
    )
