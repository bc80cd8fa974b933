"""The folders of a run's checkpoints: which are complete, which are not, and how one is deleted.

checkpoints/<step>/                a checkpoint
checkpoints/<step>/manifest.json   completes it
checkpoints/<step>.saving          marks one that is being written or deleted
checkpoints/<step>.damaged/        a damaged one, set aside when the run went on from an older one

A folder with neither manifest nor mark is damaged; with a mark alone it is unfinished.
"""

import dataclasses

from etils import epath

from diffussm_jax.config import CheckpointConfig, parsing
from diffussm_jax.workdir import integrity
from diffussm_jax.workdir.retention import kept_steps

RECORD_FOLDER, RECORD_FILE = "record", "record.json"
_MARK = ".saving"
_DAMAGED = ".damaged"
_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """What is read of a record to tell the best checkpoint."""

    eval_loss: float | None = None


class StepFolders:
    """The folders in `path`, one for each step. Only the first process may change them."""

    def __init__(self, path: epath.Path):
        self.path = path

    def folder(self, step: int) -> epath.Path:
        return self.path / str(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, complete or not, in rising order."""
        if not self.path.exists():
            return []
        names = (path.name for path in self.path.iterdir())
        return sorted(int(name) for name in names if name.isdigit())

    def is_unfinished(self, step: int) -> bool:
        """Whether a kill interrupted the writing or the deletion of a checkpoint."""
        return self._mark(step).exists() and not integrity.is_complete(self.folder(step))

    def begin(self, step: int) -> None:
        """Mark a checkpoint that is about to be written."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._mark(step).touch()

    def complete(self, step: int) -> None:
        """Write the manifest of a checkpoint all of whose files are written."""
        integrity.write_manifest(self.folder(step))
        self._mark(step).unlink()

    def delete(self, step: int) -> None:
        """Delete a checkpoint. What a kill leaves of it is as unfinished as a half-written one."""
        self._mark(step).touch()
        (self.folder(step) / integrity.MANIFEST_FILE).unlink(missing_ok=True)
        self.folder(step).rmtree()
        self._mark(step).unlink()

    def set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint `<step>.damaged`, in place of an earlier one of that name."""
        path = self.path / f"{step}{_DAMAGED}"
        if path.exists():
            path.rmtree()
        self.folder(step).rename(path)

    def delete_unfinished(self) -> None:
        """Delete what interrupted saves and deletions left."""
        if not self.path.exists():
            return
        for step in filter(self.is_unfinished, self.steps()):
            self.folder(step).rmtree()
        for path in self.path.iterdir():
            if _ORBAX_TEMPORARY in path.name:
                path.rmtree()
            elif path.name.endswith(_MARK):
                path.unlink()

    def delete_old(self, config: CheckpointConfig) -> None:
        """Delete the checkpoints that the config does not keep."""
        complete = [x for x in self.steps() if integrity.is_complete(self.folder(x))]
        losses = {step: self._eval_loss(step) for step in complete} if config.keep_best else {}
        for step in set(self.steps()) - kept_steps(complete, losses, config):
            self.delete(step)

    def require_writable(self) -> None:
        """Raise the OSError of a disk that takes nothing; Orbax raises any error then."""
        probe = self.path / f"probe{_MARK}"
        probe.write_bytes(bytes(2**16))
        probe.unlink()

    def _mark(self, step: int) -> epath.Path:
        return self.path / f"{step}{_MARK}"

    def _eval_loss(self, step: int) -> float | None:
        """Read without Orbax, which would wait for all processes; None in a damaged record."""
        path = self.folder(step) / RECORD_FOLDER / RECORD_FILE
        try:
            return parsing.from_json(_Evaluation, path.read_text(encoding="utf-8")).eval_loss
        except (OSError, ValueError):
            return None
