"""Checkpoints of the whole run, through Orbax: written in the background, complete or not there, checked before use.

checkpoints/<step>/state/          step, params, ema, optimizer: arrays, in shards
checkpoints/<step>/record/         what else the run is: seed, position in the data, config, versions (JSON)
checkpoints/<step>/manifest.json   the checksum of each file, written last
"""

import contextlib
import json
import logging
import math
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
from diffussm_jax.errors import CheckpointError, UserError
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir import integrity
from diffussm_jax.workdir.layout import CHECKPOINTS_FOLDER
from diffussm_jax.workdir.record import Record
from diffussm_jax.workdir.saving import Save, one_line

logger = logging.getLogger(__name__)

_MARK, _RECORD_FILE = ".saving", "record.json"


class Saved(NamedTuple):
    """What was saved at a step."""

    state: TrainState
    record: Record


class Checkpoints:
    """The checkpoints of a work directory; used as a context manager, whose end waits for the save in hand."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._folder = epath.Path(workdir).absolute() / CHECKPOINTS_FOLDER
        self._config = config
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                record=ocp.JsonCheckpointHandler(filename=_RECORD_FILE),
            ),
            async_options=ocp.options.AsyncOptions(timeout_secs=math.ceil(config.timeout)),
        )
        self._save: Save | None = None
        self._last_whole: int | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, CheckpointError):
            return  # it may hang
        if error is not None and jax.process_count() > 1:
            return  # the others may not come to this save's end
        self.wait()
        wait_for_all("checkpoints are complete")
        self._orbax.close()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, complete ones and others, in rising order."""
        if not self._folder.exists():
            return []
        names = (path.name for path in self._folder.iterdir())
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, state: Any, record: Record) -> None:
        """Start to write a checkpoint, unless that step has one. Waits for the one before it.

        Raises:
            CheckpointError: that one failed.
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
                self._folder.mkdir(parents=True, exist_ok=True)
                self._mark(step).touch()
            self._orbax.save(self._folder / str(step), args=items, force=True)
        self._save.finish(self._finish)

    def check(self) -> None:
        """Look after the save in hand without waiting for it.

        Raises:
            CheckpointError: it failed, or takes longer than `checkpoint.timeout`.
        """
        if self._save is not None and self._save.is_over():
            self.wait()

    def wait(self) -> None:
        """Wait for the end of the save in hand, if any; raises as `check` does."""
        if self._save is not None:
            self._save.wait()
            self._last_whole, self._save = self._save.step, None

    def _finish(self, step: int) -> None:
        """In the background, when the devices' arrays are copied: see it written, complete it, delete older ones."""
        try:
            self._orbax.wait_until_finished()
            if is_first():
                integrity.write_manifest(self._folder / str(step))
                self._mark(step).unlink()
        except BaseException:
            try:
                self._find_disk_error()
            finally:
                with contextlib.suppress(OSError):
                    self._delete_unfinished()  # a full disk may be full of them
            raise
        if is_first():
            for old in set(self.steps()) - self._kept():
                self._delete(old)

    def _find_disk_error(self) -> None:
        """Raise the OSError of a disk that takes nothing: what Orbax raises then may be of any kind."""
        probe = self._folder / f"probe{_MARK}"
        probe.write_bytes(bytes(2**16))
        probe.unlink()

    def _kept(self) -> set[int]:
        """The newest ones, every `keep_every`th step, and the one of the lowest evaluation loss."""
        steps = [step for step in self.steps() if self._is_complete(step)]
        kept = set(steps[-self._config.keep :])
        if self._config.keep_every is not None:
            kept |= {step for step in steps if step % self._config.keep_every == 0}
        if self._config.keep_best:
            losses = {step: self._eval_loss(step) for step in steps}
            known = [(loss, step) for step, loss in losses.items() if loss is not None]
            kept |= {step for _, step in sorted(known)[:1]}
        return kept

    def _is_complete(self, step: int) -> bool:
        return integrity.is_complete(self._folder / str(step))

    def _eval_loss(self, step: int) -> float | None:
        """Read past Orbax, whose reading waits for every process."""
        path = self._folder / str(step) / "record" / _RECORD_FILE
        try:
            return json.loads(path.read_text())["eval_loss"]
        except (OSError, ValueError, LookupError, TypeError):
            return None  # damaged, and not looked into before it is to be read

    def _mark(self, step: int) -> epath.Path:
        """What lies beside a checkpoint until it is complete: one without manifest and mark is damaged, not unfinished."""
        return self._folder / f"{step}{_MARK}"

    def _delete(self, step: int) -> None:
        """Half of it, after a kill, is as unfinished as half of a save."""
        self._mark(step).touch()
        (self._folder / str(step) / integrity.MANIFEST_FILE).unlink(missing_ok=True)
        (self._folder / str(step)).rmtree()
        self._mark(step).unlink()

    def _is_unfinished(self, step: int) -> bool:
        return self._mark(step).exists() and not self._is_complete(step)

    def _delete_unfinished(self) -> None:
        if not is_first() or not self._folder.exists():
            return
        for step in filter(self._is_unfinished, self.steps()):
            (self._folder / str(step)).rmtree()
        for path in self._folder.iterdir():
            if ".orbax-checkpoint-tmp" in path.name:
                path.rmtree()
            elif path.name.endswith(_MARK):
                path.unlink()

    def resume(self, abstract_state: TrainState) -> Saved | None:
        """What the run goes on from: the newest checkpoint that is whole, or None where there is none at all.

        Newer ones that are not whole are reported and deleted: the run comes to their steps again.

        Raises:
            UserError: there are checkpoints but none is whole, or it was saved from another model.
        """
        self._delete_unfinished()
        saved, damaged = self._newest_whole(abstract_state)
        for step in damaged if is_first() else []:
            self._delete(step)
        return saved

    def restore(self, abstract_state: Any, *, step: int | None = None) -> Saved | None:
        """What was saved at `step`, by default at the newest that is whole; None where there is nothing.

        Args:
            abstract_state: shapes, types and places of the state's arrays, any that the mesh allows.

        Raises:
            UserError: there is no such step, it is damaged, or it was saved from another model.
        """
        if step is None:
            return self._newest_whole(abstract_state)[0]
        if step not in (steps := self.steps()):
            raise UserError(f"no checkpoint of step {step} in {self._folder}; it has {steps}")
        if damage := self._find_damage(step):
            raise UserError(f"checkpoint {self._folder / str(step)} is damaged: {damage}")
        return self._read(step, abstract_state)

    def _newest_whole(self, abstract_state: Any) -> tuple[Saved | None, list[int]]:
        """What is saved in it, and the steps of the damaged ones after it."""
        damaged = []
        for step in self._agreed_steps():
            if damage := self._find_damage(step):
                logger.warning(
                    "checkpoint %s is damaged (%s): the one before it is used",
                    *(self._folder / str(step), damage),
                )
                damaged.append(step)
            else:
                return self._read(step, abstract_state), damaged
        if damaged:
            raise UserError(
                f"no checkpoint in {self._folder} is whole: put back a copy, or remove the folder to start anew"
            )
        return None, []

    def _agreed_steps(self) -> Iterator[int]:
        """The steps that were written to their end, the newest first, as process 0 sees them."""
        steps = [x for x in reversed(self.steps()) if not self._is_unfinished(x)]
        if jax.process_count() == 1:
            yield from steps
            return
        for i in range(int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))):
            mine = steps[i] if is_first() else 0
            yield int(multihost_utils.broadcast_one_to_all(np.int32(mine)))

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; each process looks at a part of it and all get an answer."""
        index, num = jax.process_index(), jax.process_count()
        folder = self._folder / str(step)
        damage = integrity.find_damage(folder, part=index, num_parts=num)
        if num > 1:
            found = multihost_utils.process_allgather(np.int32(damage is not None))
            damage = damage or ("as another process sees" if found.any() else None)
        return damage

    def _read(self, step: int, abstract_state: Any) -> Saved:
        folder = self._folder / str(step)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore()
        )
        try:
            _require_same_shapes(folder, self._orbax.metadata(folder), abstract_state)
            found = self._orbax.restore(folder, args=items)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"checkpoint {folder} cannot be read: {one_line(error)}") from error
        self._last_whole = step
        return Saved(found.state, found.record)


def _require_same_shapes(folder: epath.Path, metadata: Any, abstract_state: TrainState) -> None:
    """Compare parameter by parameter before reading, so that the error can name the first that differs."""
    saved = _shapes(metadata.item_metadata["state"].tree["params"])
    wanted = _shapes(abstract_state.params)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {folder} is of another model: {name} is {saved.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} in this config; use the config that the run was started with"
            )


def _shapes(params: dict) -> dict[str, tuple[int, ...]]:
    leaves = flatten_dict(params, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}
