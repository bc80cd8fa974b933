"""The command line.

python -m diffussm_jax.main --config=configs/digits.py --workdir=runs/digits [--mode=train]
"""

import contextlib
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, cast

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from diffussm_jax.config import Config, from_dict
from diffussm_jax.config.parsing import check_field
from diffussm_jax.data.placement import require_apart
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.parallel.distributed import find_processes, joined
from diffussm_jax.parallel.libtpu import let_libtpu_compile
from diffussm_jax.parallel.roll_call import Processes


class Mode(NamedTuple):
    """What is known of a mode before it is imported.

    `--mode=X` is the function X of the module X, called with the config and, unless it is unused,
    the work directory. It is imported only when it is called: no mode needs another's libraries.
    """

    workdir: Literal["needed", "optional", "unused"]
    is_alone: bool = False  # whether it is never a job of several processes


MODES = {
    "train": Mode("needed"),
    "sample": Mode("needed"),
    "evaluate": Mode("needed"),
    "refstats": Mode("optional"),
    "export": Mode("needed"),
    "replay": Mode("needed"),
    "encode": Mode("unused"),
    "plan": Mode("optional", is_alone=True),
    "flops": Mode("unused", is_alone=True),
}

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, samples.")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
# A job of several processes. Where none of these is given, Cloud TPU's metadata describe it.
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; the port after it is used too."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")
_START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait for the others at the start.", lower_bound=1
)


def main(argv: list[str]) -> None:
    """Run a mode; its errors end the process in one line, with the exit codes of errors.py."""
    let_libtpu_compile()
    with errors_in_one_line():
        config, workdir = read_run(argv)
        processes = _find_processes()
        _start_logging(processes)
        with joined(processes, timeout=_START_TIMEOUT.value), errors_in_one_line():
            _run(config, workdir)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one line and an exit code at an error that tells the user what to do."""
    try:
        yield
    except CommandEnd as end:
        _exit(end.exit_code, end.last_line, at_once=end.may_hang)
    except FloatingPointError as error:  # of JAX_DEBUG_NANS
        _exit(1, f"error: {error}")
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _exit(1, f"error: {error.filename or _WORKDIR.value}: {error.strerror}")


def _find_processes() -> Processes | None:
    if MODES[_MODE.value].is_alone:
        return None
    given = {x.name: x.value for x in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    return find_processes(given, timeout=_START_TIMEOUT.value)


def _run(config: Config, workdir: Path | None) -> None:
    if config.compilation_cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache_dir)
    mode = _MODE.value
    function = getattr(importlib.import_module(f"diffussm_jax.{mode}"), mode)
    function(config) if MODES[mode].workdir == "unused" else function(config, workdir)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse absl's flags and return the other arguments; a mistake ends the process in one line."""
    try:
        for argument in argv[1:]:
            if override := re.match(r"--?config\.([^=]+)", argument):
                check_field(Config, override[1])
        rest = flags.FLAGS(argv)
        # By default absl shows what every library logs. Errors are logged at length and raised too.
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = absl_logging.FATAL  # type: ignore[assignment]
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        return rest
    # Config files are the user's code and may raise anything.
    except Exception as error:  # noqa: BLE001
        _exit(2, f"error: {_one_line(error)}")


def read_run(argv: list[str]) -> tuple[Config, Path | None]:
    """Read the config and the work directory from the flags.

    Args:
        argv: what `parse_flags` returned.

    Raises:
        UserError: a flag is missing or wrong, or the config is.
    """
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}: options begin with --")
    if _CONFIG.value is None:
        raise UserError("--config is missing: give a file, as --config=configs/digits.py")
    if not _WORKDIR.value and MODES[_MODE.value].workdir == "needed":
        raise UserError(
            "--workdir is missing: give the folder of the run, as --workdir=runs/digits"
        )
    try:
        values = _CONFIG.value.to_dict()
    except OSError as error:  # a config file that cannot be read speaks up only here
        raise UserError(f"--config: {_one_line(error)}") from error
    config, workdir = from_dict(values), _find_workdir()
    require_apart(config, workdir)
    return config, workdir


def _find_workdir() -> Path | None:
    if not _WORKDIR.value:
        return None
    if _WORKDIR.value.startswith("gs://") and _MODE.value != "train":
        raise UserError(
            f"--workdir={_WORKDIR.value}: --mode={_MODE.value} needs a local folder; copy the run "
            f"first, `gcloud storage rsync --recursive {_WORKDIR.value} FOLDER`"
        )
    return as_path(_WORKDIR.value)


def as_path(name: str) -> Path:
    """The path of a folder's name; one at gs:// is an object with the methods of a Path."""
    is_remote = name.startswith("gs://")
    return cast(Path, epath.Path(name)) if is_remote else Path(os.path.expanduser(name))


def _one_line(error: Exception) -> str:
    """The last line of a message, because config_flags puts a traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _start_logging(processes: Processes | None) -> None:
    """Show the package's log on stderr; --verbosity shows that of libraries too."""
    tag = f" [{processes.index}/{processes.num}]" if processes else ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on, it announces itself
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s{tag} %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("diffussm_jax")
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [handler], False


def _exit(code: int, last_line: str, *, at_once: bool = False) -> NoReturn:
    sys.stderr.write(f"{last_line}\n")
    sys.stderr.flush()
    if at_once:
        os._exit(code)
    sys.exit(code)


def run() -> None:
    """Run `main` with the flags of the process."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
