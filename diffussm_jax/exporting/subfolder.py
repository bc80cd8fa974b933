"""Folders in an export that other programs open."""

from pathlib import Path

from etils import epath

from diffussm_jax.files import replacing_folder


def write_subfolder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by their names in a folder in place of an earlier one, or none."""
    if not files:
        epath.Path(folder).rmtree(missing_ok=True)
        return
    with replacing_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
