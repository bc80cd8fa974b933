"""Pairs of an image's two sides that may be given as one number."""

from typing import TypeVar

Number = TypeVar("Number", int, float)

Size = int | tuple[int, int]  # height and width in pixels, or the side of a square


def pair(value: Number | tuple[Number, Number]) -> tuple[Number, Number]:
    """The two numbers that one number or a pair stands for."""
    return value if isinstance(value, tuple) else (value, value)


def shortest(value: Number | tuple[Number, Number]) -> Number | tuple[Number, Number]:
    """One number for a pair of equal ones, so that each value has one form."""
    first, second = pair(value)
    return first if first == second else (first, second)


def size_name(size: Size) -> str:
    """A size in the name of a file: `256`, or `256x384` for 256 rows of 384 pixels."""
    return "x".join(map(str, pair(size))) if isinstance(size, tuple) else str(size)


def parse_size(text: str) -> tuple[int, int]:
    """The height and width in a text such as `256x384`; raises ValueError for another."""
    height, width = text.split("x")
    return int(height), int(width)
