"""Folders in an export that other programs open."""

import shutil
from pathlib import Path

LAST_FILES = ("index.html", "model_index.json")  # what shows or opens the others


def write_subfolder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by their names in a folder in place of an earlier one, or none."""
    if folder.exists():
        shutil.rmtree(folder)
    for name in sorted(files, key=LAST_FILES.__contains__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
