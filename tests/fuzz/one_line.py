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


def header(text: bytes) -> bytes:
    """The beginning of a safetensors file: the length of its header, and the header."""
    return len(text).to_bytes(8, "little") + text


# Bytes that are no weights of a model.
SAFETENSORS = {
    "empty": b"",
    "short": b"1234567",
    "length": b"\xff" * 8,
    "length beyond the end": (10**6).to_bytes(8, "little") + b"{}",
    "no json": header(b"not json"),
    "a list": header(b"[1, 2, 3]"),
    "binary": header(b"\xff\xfe\x00\x01"),
    "deep": header(b"[" * 1000),
    "nothing": header(b"{}"),
    "no dtype": header(b'{"a": {"shape": [1], "data_offsets": [0, 4]}}') + b"1234",
    "dtype": header(b'{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}') + b"1234",
    "offsets": header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}') + b"1234",
    "offsets beyond": header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}')
    + b"1234",
    "shape": header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"1234",
    "huge shape": header(
        b'{"a": {"dtype": "F32", "shape": [99999999999, 99999999999], "data_offsets": [0, 4]}}'
    )
    + b"1234",
    "float8": header(b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}')
    + b"1234",
    "a path": header(b'{"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}')
    + b"1234",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "zip": b"PK\x03\x04" + bytes(60),
}
