"""What data sets are called."""

import os
from pathlib import Path

FOLDER = "folder:"  # before the path of a folder of images


def portable_name(name: str) -> str:
    """A name without the place of its folder, which differs from machine to machine; other names as they are."""
    folder = Path(os.path.expanduser(name.removeprefix(FOLDER)))
    if name.startswith(FOLDER):
        return FOLDER + folder.resolve().name
    return folder.resolve().name if folder.is_dir() else name
