"""Whose folder is it? Nothing is written among files of anybody else's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from diffussm_jax.errors import UserError
from diffussm_jax.files import require_only
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.lock import held, is_lock

# What may be in a work directory before it is trained in.
_BEFORE_A_RUN = {layout.CONFIG_FILE, *layout.OUTPUTS}
# A shell opens the log of a command before the command begins.
_LOGS = (".err", ".log", ".out")


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Hold a work directory to train in, until the end of the context or of the process.

    Raises:
        UserError: it holds anything else than a run, or another process trains in it.
    """
    if is_first():
        _require_run_or_new(workdir)
    with held(workdir, named=f"--workdir={workdir}"):
        yield


def require_ours(workdir: Path) -> None:
    """Raise UserError unless outputs may go into a folder: a run, an export, or a new one."""
    if not (workdir / layout.EXPORT_FILE).exists():
        _require_run_or_new(workdir)


def _require_run_or_new(workdir: Path) -> None:
    if not (workdir / layout.CONFIG_FILE).exists():
        require_only(workdir, _is_before_a_run, named=f"--workdir={workdir}")
        return
    try:
        layout.read_config(workdir)
    except UserError as error:  # it may be another program's
        raise UserError(f"{error}; put it back, or use another --workdir") from error
    if layout.is_export(workdir):
        raise UserError(
            f"--workdir={workdir} is an export: train in another folder "
            f"(--config.training.init_from={workdir} begins from its weights)"
        )


def _is_before_a_run(name: str) -> bool:
    # A kill may leave the temporary file of any of them.
    is_ours = name in _BEFORE_A_RUN or name[1:] in _BEFORE_A_RUN
    return is_ours or is_lock(name) or name.endswith(_LOGS)
