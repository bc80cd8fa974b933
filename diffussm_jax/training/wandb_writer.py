"""Weights & Biases behind clu's interface of writers; its package is the extra `wandb`.

Project, entity, key and mode are those of its own environment variables (WANDB_PROJECT ...).
Nothing that goes wrong with the service stops a run or holds it up.
"""

import dataclasses
import importlib.util
import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu import metric_writers

from diffussm_jax.config import Config, to_json
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.files.paths import is_in_bucket

RUN_FILE = "wandb.json"
INIT_SECONDS, FINISH_SECONDS = 30, 10  # that a run waits for the service at its start and end
_WITHOUT_SERVICE = ("offline", "dryrun", "disabled")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WandbRun:
    """What a work directory keeps of its run there.

    Attributes:
        id: by which a run that is resumed goes on in the same run there.
        next_step: the first that was not written yet; steps must increase there.
    """

    id: str
    next_step: int = 0


class WandbWriter(metric_writers.LoggingWriter):
    """Sends scalars and images to one run of Weights & Biases; ignores everything else.

    A resumed run makes the steps after its checkpoint again, to the same numbers: those that are
    there already are not sent a second time. A run that begins anew is another run there.

    Args:
        folder: on a disk, whose files become the work directory's (`GrowingFiles`).

    Raises:
        UserError: the service is asked for, and no key is configured.
    """

    def __init__(self, config: Config, workdir: Path, folder: Path, *, start_step: int):
        super().__init__()
        self._path = folder / RUN_FILE
        self._kept = WandbRun(uuid.uuid4().hex)
        if start_step and (workdir / RUN_FILE).exists():
            self._kept = read_as(workdir / RUN_FILE, WandbRun, mend="remove it")
        self._run: Any = _start(config, workdir, self._kept.id)
        self._first_step = max(self._kept.next_step, self._run.step)
        self._step = self._first_step - 1
        self._keep()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._log(step, dict(scalars))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        if self._run is not None:
            from wandb import Image

            self._log(
                step,
                {
                    name: Image(np.squeeze(x, -1) if x.shape[-1] == 1 else x)
                    for name, x in images.items()
                },
            )

    def flush(self) -> None:
        """Do nothing: what is logged is on its way."""

    def close(self) -> None:
        if self._run is not None:
            self._attempt(self._run.finish)
            self._keep()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is None or step < self._first_step:
            return
        if step > self._step:  # the row of the step before is complete
            self._keep()
        self._step = step
        self._attempt(lambda: self._run.log(values, step=step))

    def _attempt(self, act: Any) -> None:
        try:
            act()
        # Its client raises anything at all, and training must go on.
        except Exception as error:  # noqa: BLE001
            logger.warning("wandb gets no more of this run: %s", _first_line(error))
            self._run = None

    def _keep(self) -> None:
        self._kept = dataclasses.replace(self._kept, next_step=self._step + 1)
        write_json(self._path, dataclasses.asdict(self._kept))


def require_wandb() -> None:
    """Raise UserError unless the package is installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "config.training.loggers: 'wandb' needs its package: pip install wandb, or leave it out"
        )


def _start(config: Config, workdir: Path, run_id: str) -> Any:
    """Begin or resume a run there; offline where the service does not answer in time."""
    import wandb

    options = {
        "id": run_id,
        "name": workdir.name,
        "config": json.loads(to_json(config)),
        "dir": None if is_in_bucket(workdir) else str(workdir),
        "settings": wandb.Settings(
            init_timeout=INIT_SECONDS,
            login_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            console="off",
            quiet=True,
        ),
    }
    if wandb.setup().settings.mode in _WITHOUT_SERVICE:
        return wandb.init(**options)
    try:
        return wandb.init(resume="allow", **options)
    except wandb.errors.UsageError as error:
        raise UserError(
            f"config.training.loggers: wandb: {_first_line(error)} WANDB_MODE=offline needs none"
        ) from error
    # Its client raises anything at all, and training must go on.
    except Exception as error:  # noqa: BLE001
        logger.warning("wandb is offline until the next start: %s", _first_line(error))
        wandb.teardown()  # its process holds the run that did not begin
        return wandb.init(mode="offline", **options)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
