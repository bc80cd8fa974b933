"""The command line.

python -m diffussm_jax.main --config=configs/digits.py --workdir=runs/digits [--mode=train]
"""

import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from diffussm_jax.parallel.cuda import cuda_as_compiler

try:
    with cuda_as_compiler():
        import jax
except ValueError as error:  # of a value in the environment; any import of JAX reads them all
    sys.stderr.write(f"error: an environment variable of JAX's: {error}\n")
    sys.exit(2)

from diffussm_jax.config import Config, ExportConfig, config_file, from_dict, parsing
from diffussm_jax.config.paths import expand
from diffussm_jax.data.placement import require_apart
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.files.hub.address import is_address, parse
from diffussm_jax.files.paths import as_path
from diffussm_jax.parallel.distributed import find_processes, joined
from diffussm_jax.parallel.libtpu import let_libtpu_compile
from diffussm_jax.parallel.roll_call import Processes
from diffussm_jax.parallel.settings import start_jax
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.mirror import mirror


class Mode(NamedTuple):
    """What is known of a mode before it is imported.

    `--mode=X` is the function X of the module X, called with the config and, unless it is unused,
    the work directory. It is imported only when it is called: no mode needs another's libraries.
    """

    workdir: Literal["needed", "optional", "unused"]
    is_alone: bool = False  # whether it is never a job of several processes
    needs_run: bool = False  # whether an export does not do


MODES = {
    "train": Mode("needed", needs_run=True),
    "sample": Mode("needed"),
    "evaluate": Mode("needed"),
    "refstats": Mode("optional"),
    "export": Mode("needed"),
    "verify": Mode("needed", is_alone=True),
    "replay": Mode("needed", needs_run=True),
    "inspect": Mode("needed", is_alone=True),
    "edit": Mode("needed"),
    "encode": Mode("unused"),
    "plan": Mode("optional", is_alone=True),
    "flops": Mode("unused", is_alone=True),
}

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}

_CONFIG = flags.DEFINE_string("config", None, "Config file, as configs/digits.py.")
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


def _define_option(field: str) -> flags.FlagHolder:
    """Define the flag of a field of the config, which is parsed by the type of the field."""
    default = parsing.get_field(Config(), field)
    define = flags.DEFINE_boolean if isinstance(default, bool) else flags.DEFINE_string
    return define(f"config.{field}", None, f"Replaces what the config file says, else {default!r}.")


_OPTIONS = {field: _define_option(field) for field in parsing.field_names(Config)}


def main(argv: list[str]) -> None:
    """Run a mode; its errors end the process in one line, with the exit codes of errors.py."""
    let_libtpu_compile()
    with errors_in_one_line():
        config, workdir = read_run(argv)
        processes = _find_processes()
        _start_logging(processes)
        with joined(processes, timeout=_START_TIMEOUT.value), errors_in_one_line():
            if _WORKDIR.value and is_address(_WORKDIR.value):
                log = logging.getLogger("diffussm_jax")
                log.info("outputs of --workdir=%s go to %s", _WORKDIR.value, workdir)
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
    start_jax()
    function = getattr(importlib.import_module(f"diffussm_jax.{mode}"), mode)
    function(config) if MODES[mode].workdir == "unused" else function(config, workdir)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse absl's flags and return the other arguments; a mistake ends the process in one line."""
    try:
        for argument in argv[1:]:
            if option := re.match(r"--?config\.([^=]*)", argument):
                parsing.find_type(Config, option[1])  # it suggests a better name than absl does
        rest = flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        _exit(2, f"error: {error}")
    # By default absl shows what every library logs. Errors are logged at length and raised too.
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = absl_logging.FATAL  # type: ignore[assignment]
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return rest


def read_run(argv: list[str]) -> tuple[Config, Path | None]:
    """Read the config and the work directory from the flags.

    Args:
        argv: what `parse_flags` returned.

    Raises:
        UserError: a flag is missing or wrong, or the config is.
    """
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}: options begin with --")
    for flag in (_CONFIG, _WORKDIR, *_OPTIONS.values()):
        if isinstance(flag.value, str) and flag.value.startswith("--"):
            raise UserError(f"--{flag.name} has no value before {flag.value}")
    if not _CONFIG.value and (_MODE.value == "train" or not _WORKDIR.value):
        raise UserError("--config is missing: give a file, as --config=configs/digits.py")
    if not _WORKDIR.value and MODES[_MODE.value].workdir == "needed":
        raise UserError(
            "--workdir is missing: give the folder of the run, as --workdir=runs/digits"
        )
    given = config_file.load(_CONFIG.value) if _CONFIG.value else None
    options = {field: flag.value for field, flag in _OPTIONS.items() if flag.present}
    config = from_dict(given, options) if given is not None else Config()
    workdir = _find_workdir()
    if given is None and workdir is not None:  # the config of the run or the export there
        config = from_dict(dataclasses.asdict(_config_of(workdir)), options)
    if config.plan.search and _MODE.value != "plan":
        raise UserError(f"config.plan.search=True needs --mode=plan, got --mode={_MODE.value}")
    require_apart(config, workdir)
    return config, workdir


def _config_of(workdir: Path) -> Config:
    """The config in a work directory; where it is on the hub, not what would be written where."""
    saved = layout.read_config(workdir)
    if not is_address(str(_WORKDIR.value)):
        return saved
    return dataclasses.replace(saved, compilation_cache_dir=None, export=ExportConfig())


def _find_workdir() -> Path | None:
    if not _WORKDIR.value:
        return None
    try:
        name = expand(_WORKDIR.value)
    except UserError as error:
        raise UserError(f"--workdir={_WORKDIR.value}: {error}") from error
    if is_address(name) and not MODES[_MODE.value].needs_run:
        return mirror(parse(name))
    if is_address(name):
        raise UserError(
            f"--workdir={name}: --mode={_MODE.value} needs a folder that it can write to; "
            f"--config.training.init_from={name} begins a run from the weights there"
        )
    return as_path(name)


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
