"""Names of data sets that mean the same on every machine."""

import os
from pathlib import Path

FOLDER = "folder:"  # before the path of a folder of images


def portable_name(name: str) -> str:
    """Reduce the path of a folder to its last part, and leave other names as they are.

    Where a folder lies differs from machine to machine.
    """
    folder = Path(os.path.expanduser(name.removeprefix(FOLDER)))
    if name.startswith(FOLDER):
        return FOLDER + folder.resolve().name
    return folder.resolve().name if folder.is_dir() else name
