"""`--mode=sample`: draw images from a run into its work directory."""

import logging
from pathlib import Path

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.sampling.images import save_grid, save_npz, save_pngs
from diffussm_jax.sampling.job import Samples
from diffussm_jax.sampling.model import sample_run

logger = logging.getLogger(__name__)

MAX_GRID_IMAGES = 1024
_OUTPUT_NAMES = {"grid": "samples.png", "npz": "samples.npz", "png": "images"}


def sample(config: Config, workdir: Path) -> None:
    """Draw `sample.num` images into `workdir/samples/`, in the forms that `sample.outputs` names.

    What an earlier such job has finished in `workdir/samples/parts/` is kept.

    Raises:
        UserError: there is no run or checkpoint, or it does not fit the config.
    """
    folder = workdir / "samples"
    samples = sample_run(config, workdir, config.sample, folder / "parts")
    if is_first():
        _write_outputs(samples, folder, config.sample)


def _write_outputs(samples: Samples, folder: Path, options: SampleConfig) -> None:
    for output in options.outputs:
        path = folder / _OUTPUT_NAMES[output]
        if output == "grid":
            images = samples.first(MAX_GRID_IMAGES)
            labels = None if options.labels == "random" else samples.labels
            if labels is not None:
                labels = labels[: len(images)]
            save_grid(images, path, labels=labels)
        elif output == "npz":
            save_npz(samples.images(), path, shape=samples.shape, labels=samples.labels)
        else:
            save_pngs(samples.images(), path)
        logger.info("wrote %s", path)
