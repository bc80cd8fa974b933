"""A config file: Python whose `get_config` returns the fields that it sets, as a ConfigDict."""

import contextlib
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffussm_jax.config.paths import expand
from diffussm_jax.errors import UserError


def load(name: str) -> dict[str, Any]:
    """Run a file's `get_config` and return its fields, by section.

    From whatever folder the command is given, the file can import its neighbours, by their own
    names or as parts of the package that its folder is.

    Args:
        name: `FILE.py`, or `FILE.py:ARGUMENT` for a `get_config` that takes one.

    Raises:
        UserError: in one line that names the file, and the line of a mistake in it.
    """
    file, *argument = name.split(":", 1)
    try:
        path = Path(expand(file)).resolve(strict=True)
        with _importing_from(path.parent, path.parent.parent):
            config = _get_config(path)(*argument)
        values = config.to_dict() if hasattr(config, "to_dict") else config
        if not isinstance(values, dict):
            raise TypeError(f"get_config must return a ConfigDict, got {config!r}")
        return values
    except Exception as error:  # it is the user's code, which may raise anything
        raise UserError(f"--config={name}: {_describe(error, file)}") from error


def _get_config(path: Path) -> Callable[..., Any]:
    code = runpy.run_path(str(path))
    if "get_config" not in code:
        raise NameError("it defines no get_config")
    return code["get_config"]


@contextlib.contextmanager
def _importing_from(*folders: Path) -> Iterator[None]:
    """Look for modules in these folders first."""
    saved = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = saved


def _describe(error: Exception, file: str) -> str:
    """The last line of an error's text, and the last line of the file that led to it."""
    text = str(error).strip().splitlines()
    if isinstance(error, (OSError, UserError)):
        return getattr(error, "strerror", None) or text[-1]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if Path(x.filename).name == Path(file).name]
    place = f"line {lines[-1]}: " if lines else ""
    return f"{place}{type(error).__name__}: {text[-1] if text else 'no message'}"
