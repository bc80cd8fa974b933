"""What every malformed input must end in, and damage to make such inputs with."""

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffussm_jax import main

LIMIT = 20  # seconds


def error_of(function: Callable) -> str:
    """The line that `main` ends with, which must be one, with exit code 2, in time."""
    stderr, began = io.StringIO(), time.monotonic()
    with (
        pytest.raises(SystemExit) as end,
        contextlib.redirect_stderr(stderr),
        main.errors_in_one_line(),
    ):
        function()
    assert end.value.code == 2
    text = stderr.getvalue()
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert time.monotonic() - began < LIMIT
    return text


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, to compare with later."""
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Bytes that are no JSON object of anything, or one of something else.
JSON_DAMAGE = {
    "empty": b"",
    "torn": b'{"model": {"dep',
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "string": b'"x"',
    "binary": b"\xff\xfe\x00\x01",
    "nul": b"\x00" * 64,
    "deep": b"[" * 100_000,
    "long number": b'{"seed": ' + b"1" * 5000 + b"}",
    "unknown": b'{"answer": 42}',
    "nan": b'{"seed": NaN}',
    "huge": b'{"seed": 1e999}',
    "section": b'{"model": 3}',
    "two": b"{}{}",
    "html": b"<html>404</html>",
}
