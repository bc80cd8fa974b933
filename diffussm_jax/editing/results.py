"""What an edit leaves in the work directory: a PNG for each result, a grid and what made them.

edit/NAME.png    a result; NAME_0.png, NAME_1.png ... of several, A-B_0.png ... between two images
edit/grid.png    before, mask and after
edit/edit.json   the seed and the options of the job, and each result with its image and labels
edit/parts/      the job that is drawn or was
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffussm_jax.config import Config, EditConfig
from diffussm_jax.config.parsing import read_as
from diffussm_jax.editing.folder import FolderToEdit
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json, writing_to
from diffussm_jax.sampling.edit_sources import Sources
from diffussm_jax.sampling.images import ImageArray, save_grid, save_png
from diffussm_jax.sampling.job import Samples
from diffussm_jax.workdir.lock import is_lock

logger = logging.getLogger(__name__)

FOLDER, GRID_FILE, RESULTS_FILE, PARTS_FOLDER = "edit", "grid.png", "edit.json", "parts"
MAX_GRID_ROWS = 64
# 8 bits have no smaller mean error of rounding.
MIN_SQUARE_ERROR = 1 / 12


def is_result(folder: Path, name: str) -> bool:
    """Whether a file or folder of this name was left by an edit."""
    ours = {Path(file).parts[0] for file in _read_results(folder)}
    ours |= {GRID_FILE, RESULTS_FILE, PARTS_FOLDER}
    return is_lock(name) or name.removeprefix(".") in ours  # hidden until it is complete


def write_results(folder: Path, job: Samples, edited: FolderToEdit, config: Config) -> None:
    """Write the results of a finished job; those of an earlier job that have no successor go."""
    entries = _entries(job, edited, config)
    files = [entry["file"] for entry in entries]
    with writing_to(folder):
        for file in set(_read_results(folder)) - set(files):
            _remove(folder, file)
        # Known before they are written: a kill leaves no picture that nobody owns.
        write_json(folder / RESULTS_FILE, {"results": [{"file": file} for file in files]})
        for entry, image in zip(entries, _each(job), strict=True):
            save_png(image, folder / entry["file"])
            if config.edit.kind == "invert" and config.edit.target is None:
                row = entry["index"] // config.edit.num
                before = edited.sources.images[row : row + 1]
                entry["psnr"] = round(float(psnr(before, image[None])[0]), 2)
        _write_grid(folder / GRID_FILE, job, edited.sources, config.edit)
        write_json(folder / RESULTS_FILE, job.facts | {"results": entries})
    errors = [entry["psnr"] for entry in entries if "psnr" in entry]
    if errors:
        line = "reconstruction: PSNR %.2f dB on average, %.2f at least, of %d images"
        logger.info(line, np.mean(errors), min(errors), len(errors))
    logger.info("wrote %d images and %s", len(files), folder / GRID_FILE)


def psnr(images: ImageArray, others: ImageArray) -> Float[np.ndarray, " b"]:
    """Peak signal-to-noise ratio of images of 8 bits in dB; that of equal ones is 58.9."""
    error = np.mean(np.square(images.astype(np.float64) - others), axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, MIN_SQUARE_ERROR))


def _entries(job: Samples, edited: FolderToEdit, config: Config) -> list[dict[str, Any]]:
    """What is noted of each result."""
    edit, labels = config.edit, edited.sources.labels
    entries = []
    for index in range(job.num):
        row, number = divmod(index, edit.num)
        rows = (row, row + 1) if edit.kind == "interpolate" else (row,)
        name = edited.names[row]
        if len(rows) == 2:
            name += f"-{Path(edited.names[row + 1]).name}"
        if edit.num > 1 or len(rows) == 2:
            name += f"_{number:0{len(str(edit.num - 1))}d}"
        entry: dict[str, Any] = {"file": f"{name}.png", "images": [edited.files[x] for x in rows]}
        entry |= {"seed": config.sample.seed, "index": index}
        if labels is not None:
            # The number of classes means none.
            known = [int(labels[x]) for x in rows]
            entry["labels"] = [None if x == config.data.num_classes else x for x in known]
            entry["target"] = edit.target
        entries.append(entry)
    files = [entry["file"] for entry in entries]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise UserError(f"config.edit.images: two results would be edit/{twice}: rename an image")
    return entries


def _remove(folder: Path, file: str) -> None:
    """Remove a result, and the folders that it leaves empty."""
    (folder / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for parent in Path(file).parents[:-1]:
            (folder / parent).rmdir()


def _each(job: Samples) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    for images in job.images():
        yield from images


def _write_grid(path: Path, job: Samples, sources: Sources, edit: EditConfig) -> None:
    """Write the images, their masks and results, side by side."""
    num_rows = min(job.num // edit.num, MAX_GRID_ROWS)
    before = sources.images[:num_rows, None]
    columns = [before]
    if sources.masks is not None:
        mask = np.broadcast_to(sources.masks[:num_rows, None, ..., None], before.shape)
        if edit.kind == "outpaint":  # there is no image around it
            columns = [np.where(mask, np.uint8(128), before)]
        columns.append(255 * mask.astype(np.uint8))
    columns.append(job.first(num_rows * edit.num).reshape(num_rows, edit.num, *before.shape[2:]))
    if edit.kind == "interpolate":
        columns.append(sources.images[1 : num_rows + 1, None])
    rows = np.concatenate(columns, axis=1)
    num_columns = rows.shape[1]
    labels = np.tile(np.arange(num_columns), num_rows)  # so that no row of them is broken
    save_grid(rows.reshape(-1, *rows.shape[2:]), path, labels=labels)


def _read_results(folder: Path) -> list[str]:
    """The files of the results that an earlier job wrote."""
    try:
        results = read_as(folder / RESULTS_FILE, dict).get("results", [])
        files = [str(result["file"]) for result in results]
    except (FileNotFoundError, UserError, TypeError, KeyError, AttributeError):
        return []
    return [file for file in files if not re.search(r"(^|/)\.\.?(/|$)|^/", file)]
