"""Write images to files: a grid, a folder of PNGs, the npz that ADM's evaluator reads."""

import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int, UInt8
from PIL import Image

from diffussm_jax.files import replacing, replacing_folder, require_only
from diffussm_jax.files.paths import as_path
from diffussm_jax.shapes import ceil_div

ImageArray = UInt8[np.ndarray, "b h w c"]
LatentArray = Float16[np.ndarray, "b h w c"]  # as an autoencoder gives them, not yet scaled
LabelArray = Int[np.ndarray, "b"]

_GAP_COLOUR = 128  # neither the paper nor the ink of a digit
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a constant: the bytes must not depend on the hour


def save_grid(
    images: ImageArray, path: str | Path, *, labels: LabelArray | None = None, gap: int = 1
) -> None:
    """Write images as one PNG, as `make_grid` arranges them."""
    grid = make_grid(images, labels=labels, gap=gap)
    save_png(grid, as_path(path))


def make_grid(
    images: ImageArray, *, labels: LabelArray | None = None, gap: int = 1
) -> UInt8[np.ndarray, "height width c"]:
    """Arrange images as one that is nearly square, row by row, with `gap` pixels between them.

    Where labels repeat with a period, a row holds complete periods, so that a column is one class.
    Images below 32 pixels are enlarged.
    """
    num, height, width, channels = images.shape
    num_columns = _num_columns(num * height / width, labels)
    num_rows = ceil_div(num, num_columns)
    cell = (height + gap, width + gap, channels)
    cells = np.full((num_rows * num_columns, *cell), _GAP_COLOUR, np.uint8)
    cells[:num, :height, :width] = images
    rows = cells.reshape(num_rows, num_columns, *cell).swapaxes(1, 2)
    grid = rows.reshape(num_rows * cell[0], num_columns * cell[1], channels)
    grid = grid[: len(grid) - gap, : grid.shape[1] - gap]
    zoom = ceil_div(32, min(height, width))
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)


def save_png(image: UInt8[np.ndarray, "h w c"], path: Path) -> None:
    """Write one image as a PNG; its folder is made, and the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(as_png(image))


def as_png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """The bytes of an image's PNG."""
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="png")
    return buffer.getvalue()


def is_numbered_png(name: str) -> bool:
    """Whether a file has a name that `save_pngs` gives."""
    return re.fullmatch(r"\d{6,}\.png", name) is not None


def is_class(name: str) -> bool:
    """Whether a folder has a name that `save_pngs` gives to one of a class."""
    return re.fullmatch(r"\d+", name) is not None


def save_pngs(
    batches: Iterable[np.ndarray],
    folder: Path,
    *,
    labels: LabelArray | None = None,
    num_classes: int = 0,
) -> None:
    """Write each image as `000000.png`, `000001.png` ... into a folder that is replaced.

    Args:
        labels: with them each image goes into the folder of its class, `7` or `007`, so that these
            are in the order of the labels.

    Raises:
        UserError: the folder holds anything but such images, or such folders.
    """
    folder = folder.resolve()  # of a link, the folder that it leads to is replaced
    with replacing_folder(folder) as temporary:
        digits = len(str(num_classes - 1))
        folders = [temporary / f"{label:0{digits}d}" for label in range(num_classes)]
        for path in folders:
            path.mkdir()
        for index, image in enumerate(itertools.chain.from_iterable(batches)):
            parent = temporary if labels is None else folders[labels[index]]
            _picture(image).save(parent / f"{index:06d}.png")
        is_ours = is_numbered_png if labels is None else is_class
        require_only(folder, is_ours, named=str(folder))


def save_npz(
    batches: Iterable[np.ndarray],
    path: Path,
    *,
    shape: tuple[int, int, int, int],
    labels: LabelArray | None,
) -> None:
    """Write images in ADM's form: `arr_0`, uint8 [num h w c], and with labels `arr_1`, int64 [num].

    One batch is in memory at a time, and the bytes depend on the images and labels alone. The file
    appears when it is complete.

    Args:
        shape: [num h w c] of all images together.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        pixels = (batch.tobytes() for batch in batches)
        _write_array(archive, "arr_0", np.dtype(np.uint8), shape, pixels)
        if labels is not None:
            wide = labels.astype(np.int64)
            parts = iter([wide.tobytes()])
            _write_array(archive, "arr_1", wide.dtype, wide.shape, parts)


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterator[bytes],
) -> None:
    """Add `name.npy` to an archive, uncompressed as np.savez does."""
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_TIME)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part)


def _picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _num_columns(num_squares: float, labels: LabelArray | None) -> int:
    side = int(np.ceil(np.sqrt(num_squares)))
    period = 1 if labels is None else len(np.unique(labels))
    return period * max(1, round(side / period)) if period <= 3 * side else side
