"""Names of data sets that mean the same on every machine."""

from pathlib import Path

from diffussm_jax.config.paths import FOLDER


def portable_name(name: str) -> str:
    """Reduce the path of a folder to its last part, and leave other names as they are.

    Where a folder lies differs from machine to machine.
    """
    folder = Path(name.removeprefix(FOLDER))
    if name.startswith(FOLDER):
        return FOLDER + folder.resolve().name
    return folder.resolve().name if folder.is_dir() else name
