"""What a run wrote after the step that it goes on from, which it will write again."""

import logging
import re
from pathlib import Path

from diffussm_jax.workdir.ema_snapshots import SNAPSHOTS_FOLDER

logger = logging.getLogger(__name__)

# Grids and snapshots, which are named after their step.
_OUTPUTS = {"samples": r"step_(\d+)\.png", SNAPSHOTS_FOLDER: r"step_(\d+)_.*\.safetensors"}


def drop_after(step: int, workdir: Path) -> None:
    """Remove sample grids and snapshots of averages that are of a later step.

    They are of a run that was killed before it saved that step, and that may have had another
    config if it saved nothing at all. An average made from the snapshots of both would be of
    neither. The log is cut in the same way by `training.log`.
    """
    for name, pattern in _OUTPUTS.items():
        folder = workdir / name
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            match = re.fullmatch(pattern, path.name)
            if match and int(match[1]) > step:
                logger.info("removing %s, of a step after %d", path, step)
                path.unlink()
