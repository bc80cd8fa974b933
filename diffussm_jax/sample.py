"""`--mode=sample`: draws images into a work directory."""

import logging
from pathlib import Path

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.sampling.images import save_grid, save_npz, save_pngs
from diffussm_jax.sampling.job import Samples, draw_to
from diffussm_jax.sampling.model import load
from diffussm_jax.workdir import layout

logger = logging.getLogger(__name__)

MAX_GRID_IMAGES = 1024


_OUTPUT_NAMES = {"grid": "samples.png", "npz": "samples.npz", "png": "images"}


def sample(config: Config, workdir: Path) -> None:
    """Draw `sample.num` images into `workdir/samples/` and write them in the forms that `sample.outputs` names.

    What an earlier such job has finished in `workdir/samples/parts/` is kept.

    Raises:
        UserError: there is no run or checkpoint, or it does not fit the config.
    """
    layout.require_same_model(workdir, config)
    options = config.sample
    model = load(workdir, ema=options.ema, ema_length=options.ema_length, config=config)
    logger.info("sampling %d images from step %d", options.num, model.step)
    samples = draw_to(workdir / "samples" / "parts", model, options)
    if is_first():
        _write_outputs(samples, workdir / "samples", options)


def _write_outputs(samples: Samples, folder: Path, options: SampleConfig) -> None:
    for output in options.outputs:
        path = folder / _OUTPUT_NAMES[output]
        if output == "grid":
            shown = samples.first(MAX_GRID_IMAGES)
            labels = None if options.labels == "random" else samples.labels
            if labels is not None:
                labels = labels[: len(shown)]
            save_grid(shown, path, labels=labels)
        elif output == "npz":
            save_npz(samples.images(), path, shape=samples.shape, labels=samples.labels)
        else:
            save_pngs(samples.images(), path)
        logger.info("wrote %s", path)
