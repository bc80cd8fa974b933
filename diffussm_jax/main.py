"""Command line: python -m diffussm_jax.main --config=configs/digits.py --workdir=runs/digits [--mode=train]"""

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
from diffussm_jax.errors import CheckpointError, Preempted, UserError
from diffussm_jax.parallel.distributed import find_processes, joined
from diffussm_jax.parallel.roll_call import Processes


class Mode(NamedTuple):
    """The function of a mode, imported when it is asked for: none needs another's libraries."""

    function: str  # module:name, called with the config and, unless unused, the work directory
    workdir: Literal["needed", "optional", "unused"]


MODES = {
    "train": Mode("diffussm_jax.train:train", "needed"),
    "sample": Mode("diffussm_jax.sample:sample", "needed"),
    "evaluate": Mode("diffussm_jax.evaluate:evaluate", "needed"),
    "refstats": Mode("diffussm_jax.refstats:refstats", "optional"),
    "export": Mode("diffussm_jax.export:export", "needed"),
    "replay": Mode("diffussm_jax.replay:replay", "needed"),
    "encode": Mode("diffussm_jax.encode:encode", "unused"),
    "plan": Mode("diffussm_jax.plan:plan", "optional"),
    "flops": Mode("diffussm_jax.flops:flops", "unused"),
}

ALONE = ("plan", "flops")  # never a job of several processes

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, samples.")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


# A job of several processes; Cloud TPU's metadata serve where none is given.
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; the port after it is used too."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")
_START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait for the others at the start.", lower_bound=1
)


def main(argv: list[str]) -> None:
    with _errors_in_one_line():
        config, workdir = _read_run(argv)
        processes = _find_processes() if _MODE.value not in ALONE else None
        _start_logging(processes)
        with joined(processes, timeout=_START_TIMEOUT.value), _errors_in_one_line():
            _run(config, workdir)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (UserError, FloatingPointError) as error:
        _exit(getattr(error, "exit_code", 1), f"error: {error}")
    except CheckpointError as error:
        _write_line(f"error: {error}")
        os._exit(error.exit_code)  # a write that hangs would be waited for
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _exit(1, f"error: {error.filename or _WORKDIR.value}: {error.strerror}")
    except Preempted as end:
        _exit(end.exit_code, f"preempted: {end}; the same command goes on")


def _find_processes() -> Processes | None:
    given = {x.name: x.value for x in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    return find_processes(given, timeout=_START_TIMEOUT.value)


def _run(config: Config, workdir: Path | None) -> None:
    if config.compilation_cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache_dir)
    mode = MODES[_MODE.value]
    module, _, name = mode.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    function(config) if mode.workdir == "unused" else function(config, workdir)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse absl's flags; whatever is wrong with them ends in one line."""
    try:
        for argument in argv[1:]:
            if override := re.match(r"--?config\.([^=]+)", argument):
                check_field(Config, override[1])
        rest = flags.FLAGS(argv)
        # absl's own default is every library's chatter; what they log as an error, pages of it, they also raise.
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = absl_logging.FATAL  # type: ignore[assignment]
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        return rest
    # Config files are the user's code and may raise anything.
    except Exception as error:  # noqa: BLE001
        _exit(2, f"error: {_one_line(error)}")


def _read_run(argv: list[str]) -> tuple[Config, Path | None]:
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
    return from_dict(values), _find_workdir()


def _find_workdir() -> Path | None:
    if not _WORKDIR.value:
        return None
    if _WORKDIR.value.startswith("gs://") and _MODE.value != "train":
        raise UserError(
            f"--workdir={_WORKDIR.value}: --mode={_MODE.value} needs a local folder; copy the run first, "
            f"`gcloud storage rsync --recursive {_WORKDIR.value} FOLDER`"
        )
    return _as_path(_WORKDIR.value)


def _as_path(name: str) -> Path:
    """gs://... becomes an object with a Path's methods."""
    is_remote = name.startswith("gs://")
    return cast(Path, epath.Path(name)) if is_remote else Path(os.path.expanduser(name))


def _one_line(error: Exception) -> str:
    """The last line of a message, since config_flags puts whole tracebacks before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _start_logging(processes: Processes | None) -> None:
    """Show the package's own log on stderr; libraries speak up where --verbosity says so."""
    tag = f" [{processes.index}/{processes.num}]" if processes else ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on, it announces itself
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s{tag} %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("diffussm_jax")
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [handler], False


def _write_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _exit(code: int, last_line: str) -> NoReturn:
    _write_line(last_line)
    sys.exit(code)


def run() -> None:
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
