"""`--mode=sample`: draw images from a run into its work directory."""

import json
import logging
from pathlib import Path
from typing import Any

from diffussm_jax.config import Config
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import require_only, write_json
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.sampling.images import is_numbered_png, save_grid, save_npz, save_pngs
from diffussm_jax.sampling.job import Samples
from diffussm_jax.sampling.latent_cache import save_latents
from diffussm_jax.sampling.model import sampled
from diffussm_jax.workdir.data_facts import read_data_facts

logger = logging.getLogger(__name__)

MAX_GRID_IMAGES = 1024
OUTPUTS_FILE = "outputs.json"  # of which job each output is
_OUTPUT_NAMES = {
    "grid": "samples.png",
    "npz": "samples.npz",
    "png": "images",
    "classes": "classes",
    "latents": "latents",
}


def sample(config: Config, workdir: Path) -> None:
    """Draw `sample.num` images into `workdir/samples/`, in the forms that `sample.outputs` names.

    What an earlier such job has finished in `workdir/samples/parts/` is kept.

    Raises:
        UserError: there is no run or checkpoint, it does not fit the config, or another job is
            sampling from it.
    """
    folder = workdir / "samples"
    images = folder / _OUTPUT_NAMES["png"]
    if "png" in config.sample.outputs and is_first():
        require_only(images, is_numbered_png, named=str(images))
    latents = "latents" in config.sample.outputs
    with sampled(config, workdir, config.sample, folder / "parts", latents=latents) as samples:
        if is_first():
            _write_outputs(samples, config, workdir)


def _write_outputs(samples: Samples, config: Config, workdir: Path) -> None:
    folder, options = workdir / "samples", config.sample
    job = json.loads(json.dumps({"num": samples.num} | samples.facts))  # as it will be read
    others = {name: x for name, x in _read_jobs(folder).items() if name not in options.outputs}
    write_json(folder / OUTPUTS_FILE, others)
    for output in options.outputs:
        path = folder / _OUTPUT_NAMES[output]
        if output == "latents":
            drawn = as_drawn(config.sample, config)
            save_latents(drawn, samples, path, read_data_facts(workdir))
        else:
            _write_images(output, samples, path, config)
        logger.info("wrote %s", path)
    write_json(folder / OUTPUTS_FILE, others | dict.fromkeys(options.outputs, job))
    for name in _OUTPUT_NAMES.keys() - options.outputs:
        path = folder / _OUTPUT_NAMES[name]
        if path.exists() and others.get(name) != job:
            logger.warning("%s is still of an earlier job: do not take it for this one's", path)


def _read_jobs(folder: Path) -> dict[str, Any]:
    """What made each output that is there."""
    try:
        return read_as(folder / OUTPUTS_FILE, dict)
    except (FileNotFoundError, UserError):
        return {}


def _write_images(output: str, samples: Samples, path: Path, config: Config) -> None:
    if output == "grid":
        images = samples.first(MAX_GRID_IMAGES)
        labels = None if config.sample.labels == "random" else samples.labels
        if labels is not None:
            labels = labels[: len(images)]
        save_grid(images, path, labels=labels)
    elif output == "npz":
        save_npz(samples.images(), path, shape=samples.shape, labels=samples.labels)
    elif output == "png":
        save_pngs(samples.images(), path)
    else:
        num_classes = config.data.num_classes
        save_pngs(samples.images(), path, labels=samples.labels, num_classes=num_classes)
