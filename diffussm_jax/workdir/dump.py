"""What a run that stops at non-finite numbers leaves for `--mode=replay`: `faults/step_<n>/`.

checkpoints/<n>/   the state before the updates that were dropped
batch.npz          the batch of step n, and the indices of its examples in the data
dump.json          the step, the error and the config; written last
"""

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffussm_jax.config import Config, from_dict, parsing
from diffussm_jax.data.pipeline import Batch, example_indices, stacks_of, train_batches
from diffussm_jax.data.sources import Source
from diffussm_jax.errors import CommandEnd, NonFiniteError, UserError
from diffussm_jax.files import replacing, seekable, write_json
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.record import make_record

logger = logging.getLogger(__name__)

FAULTS_FOLDER, BATCH_FILE, DUMP_FILE = "faults", "batch.npz", "dump.json"
INDICES = "indices"  # of the examples, beside the batch's own arrays


@dataclasses.dataclass(frozen=True)
class _Summary:
    """What dump.json holds."""

    step: int
    error: str
    config: dict
    time: float = 0.0  # seconds since 1970; older dumps lack it


class Dump(NamedTuple):
    """A step to run again: a batch of the source's arrays, and its examples in the data [b]."""

    folder: Path
    step: int
    error: str
    config: Config
    batch: Batch
    indices: np.ndarray


@contextlib.contextmanager
def dump_at_nonfinite(
    config: Config, workdir: Path, source: Source, state: Callable[[], TrainState]
) -> Iterator[None]:
    """When the run inside ends with NonFiniteError, write a dump and name it in the message.

    Every process must call it.

    Args:
        state: gives the state at the moment of the call.
    """
    try:
        yield
    except NonFiniteError as error:
        folder = workdir / FAULTS_FOLDER / f"step_{error.step:07d}"
        try:
            _write(folder, config, source, state(), error)
        except (OSError, CommandEnd) as failure:
            logger.warning("%s cannot be written: %s", folder, failure)
            raise error from failure
        text = f"{error}. --mode=replay looks into it ({folder})"
        raise NonFiniteError(text, step=error.step) from error


def _write(
    folder: Path, config: Config, source: Source, state: TrainState, error: NonFiniteError
) -> None:
    if is_first() and folder.exists():
        _set_aside(folder)
    wait_for_all("earlier dump set aside")
    keep_one = dataclasses.replace(config.checkpoint, keep=1)
    step = int(state.step)
    with Checkpoints(folder, keep_one) as checkpoints:
        checkpoints.save(step, state, make_record(config, step))
    if not is_first():
        return
    start_step = error.step - 1
    batch = next(train_batches(config, source, start_step=start_step))
    indices = example_indices(config, stacks_of(source), step=start_step)
    arrays: dict[str, Any] = batch | {INDICES: indices}
    with replacing(folder / BATCH_FILE) as path, path.open("wb") as file:
        np.savez(file, **arrays)
    summary = _Summary(error.step, str(error), dataclasses.asdict(config), time.time())
    write_json(folder / DUMP_FILE, dataclasses.asdict(summary))


def _set_aside(folder: Path) -> None:
    """Rename the dump of an earlier run that stopped at the same step, to `step_<n>.1` or so on."""
    taken = itertools.count(1)
    others = (folder.with_name(f"{folder.name}.{number}") for number in taken)
    folder.rename(next(path for path in others if not path.exists()))


def read_newest(workdir: Path) -> Dump:
    """Read the dump of a run's last fault.

    Raises:
        UserError: there is none, or it is damaged.
    """
    faults = workdir / FAULTS_FOLDER
    # From Python 3.13 on, glob raises for a path that cannot exist.
    files = sorted(faults.glob(f"step_*/{DUMP_FILE}")) if faults.is_dir() else []
    if not files:
        raise UserError(
            f"--workdir={workdir} has no {FAULTS_FOLDER}/: no run in it was stopped by a loss or "
            "gradient that is not finite"
        )
    folder, summary = max(((x.parent, _read_summary(x)) for x in files), key=_age)
    try:
        config = from_dict(summary.config)
        with np.load(seekable(folder / BATCH_FILE), allow_pickle=False) as arrays:
            batch = dict(arrays)
        indices = batch.pop(INDICES)
    except CommandEnd:
        raise
    except Exception as error:  # a damaged zip file raises anything
        raise _damaged(folder, error) from error
    return Dump(folder, summary.step, summary.error, config, batch, indices)


def _age(dump: tuple[Path, _Summary]) -> tuple[float, int]:
    """Later dumps have greater ones; a run that starts over may stop at an earlier step."""
    return dump[1].time, dump[1].step


def _read_summary(path: Path) -> _Summary:
    try:
        return parsing.read_as(path, _Summary)
    except (OSError, UserError) as error:
        raise _damaged(path.parent, error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} is damaged ({type(error).__name__} on reading {DUMP_FILE} and {BATCH_FILE}): it "
        "cannot be replayed"
    )
