"""Where a command may write: not among the images that it reads."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffussm_jax.config import Config
from diffussm_jax.config.paths import FOLDER
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path

SAMPLES_FOLDER, EDITS_FOLDER = "samples", "edit"  # of a work directory


def require_apart(config: Config, workdir: Path | None) -> None:
    """Raise UserError naming the first folder to write to that lies in one of images to read.

    What a run writes there would become images of its own data, or a class of them.
    """
    for images in (config.evaluate.images, config.edit.images):
        if images is not None and workdir is not None:
            require_outside(images, workdir, field="--workdir")
    if config.edit.images is not None and _contains(
        f"{workdir}/{EDITS_FOLDER}", config.edit.images
    ):
        raise UserError(
            f"config.edit.images: {config.edit.images} lies in the folder of the results, which "
            "are replaced: copy the images elsewhere first"
        )
    if not config.data.name.startswith(FOLDER):
        return
    images = config.data.name.removeprefix(FOLDER)
    folders = _with_links(images)
    for field, path in (
        ("--workdir", workdir),
        ("config.data.data_dir", config.data.data_dir),
        ("config.data.latents_dir", config.data.latents_dir),
        ("config.data.cache_dir", config.data.cache_dir),
        ("config.export.folder", config.export.folder),
        ("config.compilation_cache_dir", config.compilation_cache_dir),
    ):
        if path is not None:
            _require_outside(folders, path, field=field)
    if workdir is not None and _contains(f"{workdir}/{SAMPLES_FOLDER}", images):
        raise UserError(
            f"config.data.name: {images} lies in --workdir={workdir}, which writes its own samples "
            "there: choose another --workdir"
        )


def require_outside(images: str | Path, path: str | Path, *, field: str) -> None:
    """Raise UserError if a folder to write to lies in a folder of images, or in a link there."""
    _require_outside(_with_links(images), path, field=field)


def _require_outside(folders: Sequence[str | Path], path: str | Path, *, field: str) -> None:
    if any(_contains(folder, path) for folder in folders):
        raise UserError(
            f"{field}={path} lies in the folder of images {folders[0]}: what is written there "
            "would be read as images; choose a folder outside it"
        )


def _with_links(folder: str | Path) -> list[str | Path]:
    """A folder, and those that links in it lead to; it may have millions of files."""
    try:
        with os.scandir(folder) as entries:
            return [folder, *(x.path for x in entries if x.is_symlink() and x.is_dir())]
    except (OSError, ValueError):
        return [folder]


def _contains(folder: str | Path, path: str | Path) -> bool:
    """Whether a path is a folder or lies in it, whatever links lead there."""
    try:
        return as_path(path).resolve().is_relative_to(as_path(folder).resolve())
    except (OSError, ValueError, RuntimeError):  # what is no path is named where it is used
        return False
