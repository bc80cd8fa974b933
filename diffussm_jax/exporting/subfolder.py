"""Folders in an export that other programs open."""

import shutil
from pathlib import Path

from diffussm_jax.files.bucket_paths import BucketPath

LAST_FILES = ("index.html", "model_index.json")  # what shows or opens the others


def write_subfolder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by their names in a folder in place of an earlier one, or none."""
    if folder.exists():
        folder.rmtree() if isinstance(folder, BucketPath) else shutil.rmtree(folder)
    for name in sorted(files, key=LAST_FILES.__contains__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
