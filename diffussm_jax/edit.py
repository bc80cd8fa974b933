"""`--mode=edit`: draw parts or versions of given images anew, into the work directory of a run."""

import logging
from pathlib import Path

from diffussm_jax.config import Config
from diffussm_jax.config.editing_rules import require_fitting
from diffussm_jax.editing.folder import read_folder
from diffussm_jax.editing.results import FOLDER, PARTS_FOLDER, is_result, write_results
from diffussm_jax.files import require_only
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.sampling.model import load
from diffussm_jax.workdir.lock import held

logger = logging.getLogger(__name__)


def edit(config: Config, workdir: Path) -> None:
    """Edit the images of `edit.images` into `workdir/edit/NAME.png`, as the edit section says.

    What an earlier such job has finished in `workdir/edit/parts/` is kept. Results of another job
    are replaced.

    Raises:
        UserError: there is no run, an image, mask or label is missing or does not fit, the model or
            the sampler cannot make such an edit, or another job is editing here.
    """
    folder, options = workdir / FOLDER, config.sample
    require_fitting(config)
    if is_first():
        require_only(folder, lambda name: is_result(folder, name), named=str(folder))
    with held(folder, named=str(folder)):
        model = load(workdir, ema=options.ema, ema_length=options.ema_length, config=config)
        edited = read_folder(config, model.class_names)
        num, kind = len(edited.files), config.edit.kind
        logger.info("%s of %d images by the model of step %d", kind, num, model.step)
        job = model.edit_to(folder / PARTS_FOLDER, edited.sources, config)
        if is_first():
            write_results(folder, job, edited, config)
