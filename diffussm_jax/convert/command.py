"""The command line that the converters share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from diffussm_jax.errors import UserError


def main(description: str | None, target: str, convert: Callable[[Path, Path], str]) -> None:
    """Call `convert` with the two paths of the command line and write what it returns.

    A UserError ends the program in one line.

    Args:
        target: what the second path is called in the usage.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument(target, type=Path)
    arguments = parser.parse_args()
    try:
        summary = convert(arguments.source, getattr(arguments, target))
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(summary)
