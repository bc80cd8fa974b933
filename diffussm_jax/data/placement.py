"""Where a command may write: not among the images that it reads."""

from pathlib import Path

from diffussm_jax.config import Config
from diffussm_jax.config.paths import FOLDER
from diffussm_jax.errors import UserError

SAMPLES_FOLDER = "samples"  # of a work directory


def require_apart(config: Config, workdir: Path | None) -> None:
    """Raise UserError naming the first folder to write to that lies in one of images to read.

    What a run writes there would become images of its own data, or a class of them.
    """
    if config.evaluate.images is not None and workdir is not None:
        require_outside(config.evaluate.images, workdir, field="--workdir")
    if not config.data.name.startswith(FOLDER):
        return
    images = config.data.name.removeprefix(FOLDER)
    for field, path in (
        ("--workdir", workdir),
        ("config.data.data_dir", config.data.data_dir),
        ("config.data.latents_dir", config.data.latents_dir),
        ("config.export.folder", config.export.folder),
        ("config.compilation_cache_dir", config.compilation_cache_dir),
    ):
        if path is not None:
            require_outside(images, path, field=field)
    if workdir is not None and _contains(f"{workdir}/{SAMPLES_FOLDER}", images):
        raise UserError(
            f"config.data.name: {images} lies in --workdir={workdir}, which writes its own samples "
            "there: choose another --workdir"
        )


def require_outside(images: str | Path, path: str | Path, *, field: str) -> None:
    """Raise UserError if a folder to write to lies in a folder of images, or in a link there."""
    if any(_contains(folder, path) for folder in (images, *_links(images))):
        raise UserError(
            f"{field}={path} lies in the folder of images {images}: what is written there would be "
            "read as images; choose a folder outside it"
        )


def _links(folder: str | Path) -> list[Path]:
    """The folders that links in a folder lead to."""
    try:
        return [x for x in Path(folder).iterdir() if x.is_symlink() and x.is_dir()]
    except (OSError, ValueError):
        return []


def _contains(folder: str | Path, path: str | Path) -> bool:
    """Whether a path is a folder or lies in it, whatever links lead there."""
    if "://" in str(path):
        return False
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):  # what is no path is named where it is used
        return False
