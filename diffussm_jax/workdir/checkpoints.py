"""Checkpoints of a run, through Orbax: written in the background, and checked before use.

checkpoints/<step>/state/          step, parameters, EMA, optimizer: arrays, in shards
checkpoints/<step>/record/         JSON: seed, position in the data, config, versions
checkpoints/<step>/manifest.json   the checksum of each file, written last
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from diffussm_jax.config import CheckpointConfig
from diffussm_jax.errors import CheckpointError, CommandEnd, StorageError, UserError
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir import integrity
from diffussm_jax.workdir.background_save import Save, one_line
from diffussm_jax.workdir.layout import CHECKPOINTS_FOLDER
from diffussm_jax.workdir.record import Record, require_complete
from diffussm_jax.workdir.step_folders import RECORD_FILE, StepFolders

logger = logging.getLogger(__name__)


# How TensorStore begins to tell of a bucket that refuses or does not answer.
_OUTAGE = re.compile("PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED")


class Saved(NamedTuple):
    """What was saved at a step."""

    state: TrainState
    record: Record


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a work directory. Leaving the context waits for the save in hand."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._folders = StepFolders(epath.Path(workdir.absolute()) / CHECKPOINTS_FOLDER)
        self._config = config
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                record=ocp.JsonCheckpointHandler(filename=RECORD_FILE),
            ),
            async_options=ocp.options.AsyncOptions(timeout_secs=math.ceil(config.timeout)),
        )
        self._save: Save | None = None
        self._last_whole: int | None = None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, CheckpointError):
            return  # the save may hang
        if error is not None and jax.process_count() > 1:
            return  # the other processes may not come to the end of this save
        self.wait()
        wait_for_all("checkpoints are complete")
        self._orbax.close()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, complete or not, in rising order."""
        return self._folders.steps()

    def save(self, step: int, state: Any, record: Record) -> None:
        """Start to write a checkpoint, unless that step has one. Waits for the save before it.

        Raises:
            CheckpointError: the save before it failed.
        """
        self.wait()
        if step in self.steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        )
        self._save = Save(step, timeout=self._config.timeout, last=self._last_whole)
        with self._save.errors():
            if is_first():
                self._folders.begin(step)
            self._orbax.save(self._folders.folder(step), args=items, force=True)
        self._save.finish(self._finish)

    def check(self) -> None:
        """Look at the save in hand without waiting for it.

        Raises:
            CheckpointError: it failed, or takes longer than `checkpoint.timeout`.
        """
        if self._save is not None and self._save.is_over():
            self.wait()

    def wait(self) -> None:
        """Wait for the end of the save in hand, if any.

        Raises:
            CheckpointError: it failed, or takes longer than `checkpoint.timeout`.
        """
        if self._save is not None:
            self._save.wait()
            self._last_whole, self._save = self._save.step, None

    def _finish(self, step: int) -> None:
        """Wait for Orbax, complete the checkpoint and delete older ones; runs in the background."""
        try:
            self._orbax.wait_until_finished()
            if is_first():
                self._folders.complete(step)
        except BaseException:
            try:
                self._folders.require_writable()
            finally:
                self._delete_unfinished_quietly()
            raise
        if is_first():
            self._folders.delete_old(self._config)

    def _delete_unfinished_quietly(self) -> None:
        """Make room: a full disk may be full of what interrupted saves left."""
        if is_first():
            with contextlib.suppress(OSError, StorageError):
                self._folders.delete_unfinished()

    def resume(self, abstract_state: TrainState) -> Saved | None:
        """Read the newest undamaged checkpoint, to go on from; None where there is none at all.

        Newer, damaged ones are reported and set aside: the run comes to their steps again.

        Raises:
            UserError: all checkpoints are damaged, or the model is another.
        """
        if is_first():
            self._folders.delete_unfinished()
        saved, damaged = self._read_newest(abstract_state)
        for step in damaged if is_first() else []:
            self._folders.set_aside(step)
        return saved

    def restore(self, abstract_state: Any, *, step: int | None = None) -> Saved | None:
        """Read the checkpoint of `step`, by default the newest undamaged one; None without any.

        Args:
            abstract_state: shapes, types and shardings of the state's arrays, on any mesh.

        Raises:
            UserError: there is no such step, it is damaged, or it was saved from another model.
        """
        if step is None:
            return self._read_newest(abstract_state)[0]
        if step not in (steps := self.steps()):
            raise UserError(f"no checkpoint of step {step} in {self._folders.path}; it has {steps}")
        saved, damage = self._read(step, abstract_state)
        if saved is None:
            raise UserError(f"checkpoint {self._folders.folder(step)} is damaged: {damage}")
        return saved

    def _read_newest(self, abstract_state: Any) -> tuple[Saved | None, list[int]]:
        """Read the newest undamaged checkpoint, and list the steps of the damaged ones after it."""
        damages: dict[int, str] = {}
        for step in self._agreed_steps():
            saved, damage = self._read(step, abstract_state)
            if saved is not None:
                return saved, list(damages)
            folder = self._folders.folder(step)
            logger.warning(
                "checkpoint %s is damaged (%s): the one before it is used", folder, damage
            )
            damages[step] = damage
        if damages:
            newest, damage = next(iter(damages.items()))
            raise UserError(
                f"no checkpoint in {self._folders.path} is whole (of step {newest}, {damage}): put "
                "back a copy, or train in another work directory"
            )
        return None, []

    def _agreed_steps(self) -> Iterator[int]:
        """The steps that were written to their end, the newest first, as process 0 sees them."""
        steps = [x for x in reversed(self.steps()) if not self._folders.is_unfinished(x)]
        if jax.process_count() == 1:
            yield from steps
            return
        for i in range(int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))):
            mine = steps[i] if is_first() else 0
            yield int(multihost_utils.broadcast_one_to_all(np.int32(mine)))

    def _read(self, step: int, abstract_state: Any) -> tuple[Saved | None, str]:
        """Read a checkpoint; None and what is wrong where any process finds it damaged.

        Each process compares its part of the checksums. A checkpoint that cannot be read is
        damaged whatever they say: two runs in one folder may have written it.

        Raises:
            UserError: it is of another model.
        """
        index, num = jax.process_index(), jax.process_count()
        folder = self._folders.folder(step)
        if damage := _agree(integrity.find_damage(folder, part=index, num_parts=num)):
            return None, damage
        try:
            saved, damage = self._load(folder, abstract_state), None
        except (CommandEnd, MemoryError):
            raise
        except Exception as error:  # Orbax and what it reads raise anything
            if _OUTAGE.match(text := one_line(error)):
                raise StorageError(str(folder), text, may_pass=True) from error
            saved, damage = None, f"cannot be read: {text}"
        if damage := _agree(damage):
            return None, damage
        self._last_whole = step
        return saved, ""

    def _load(self, folder: epath.Path, abstract_state: Any) -> Saved:
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore()
        )
        _require_same_shapes(folder, self._orbax.metadata(folder), abstract_state)
        restored = self._orbax.restore(folder, args=items)
        require_complete(restored.record, int(folder.name))
        return Saved(restored.state, restored.record)


def _agree(damage: str | None) -> str | None:
    """The damage that this process sees, or that another one sees what it does not."""
    if jax.process_count() > 1:
        is_damaged = multihost_utils.process_allgather(np.int32(damage is not None))
        damage = damage or ("as another process sees" if is_damaged.any() else None)
    return damage


def _require_same_shapes(folder: epath.Path, metadata: Any, abstract_state: TrainState) -> None:
    """Raise UserError naming the first parameter whose shape differs, before any is read."""
    saved = _shapes(metadata.item_metadata["state"].tree["params"])
    ours = _shapes(abstract_state.params)
    for name in sorted(saved.keys() | ours.keys()):
        if saved.get(name) != ours.get(name):
            raise UserError(
                f"checkpoint {folder} is of another model: {name} is {saved.get(name, 'missing')} "
                f"there and {ours.get(name, 'missing')} in this config; use the config that the "
                "run was started with, and the version of diffussm_jax that wrote it"
            )


def _shapes(params: dict) -> dict[str, tuple[int, ...]]:
    leaves = flatten_dict(params, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}
