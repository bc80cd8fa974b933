"""Prepare TFDS's `fashion_mnist` from a folder of its four original files, without a download.

python -m diffussm_jax.convert.fashion_mnist /usr/share/datasets/fashion-mnist ~/tensorflow_datasets

The first folder is where Debian's package `dataset-fashion-mnist` has the files, the second is
TFDS's own, or `data.data_dir`.
"""

import contextlib
import gzip
import hashlib
import tempfile
import zlib
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import mnist

from diffussm_jax.convert import command
from diffussm_jax.data.builders import ARRAY_RECORD
from diffussm_jax.errors import UserError
from diffussm_jax.files import writing_to

# Of what is in the archives whose checksums TFDS knows. Their own differ where the files were
# compressed again, as in Debian; and MNIST's files have the same names.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class FashionMNIST(mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's own builder, which reads the unpacked files of a folder instead of downloading."""

    def __init__(self, folder: Path, **options: Any):
        self._folder = folder
        super().__init__(**options)

    def _split_generators(self, dl_manager: Any) -> list[tfds.core.SplitGenerator]:
        return super()._split_generators(self)

    def download_and_extract(self, urls: dict[str, str]) -> dict[str, Path]:
        """Stand in for TFDS's download manager, the one method of it that is called."""
        return {name: self._folder / Path(url).stem for name, url in urls.items()}


def convert(source: Path, data_dir: Path) -> str:
    """Prepare the data set in `data_dir`, unless it is there, from the four files of `source`.

    Returns:
        A line on what was done.

    Raises:
        UserError: a file is missing or holds something else, or `data_dir` cannot be written.
    """
    data_dir = data_dir.expanduser()
    with tempfile.TemporaryDirectory() as temporary, writing_to(data_dir, field="data_dir"):
        builder = FashionMNIST(Path(temporary), data_dir=data_dir, file_format=ARRAY_RECORD)
        if builder.is_prepared():
            return f"{builder.data_dir} is there already\n"
        for name in SHA256:
            (Path(temporary) / name).write_bytes(_unpack(source / f"{name}.gz"))
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(None):  # it would speak of a download
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    counts = [f"{split.num_examples} of {name}" for name, split in builder.info.splits.items()]
    return f"wrote {builder.data_dir}: {' and '.join(counts)}\n"


def _unpack(path: Path) -> bytes:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != SHA256[path.stem]:
        raise UserError(f"{path} is not Fashion-MNIST's: MNIST's files have the same names")
    return data


if __name__ == "__main__":
    command.main(__doc__, "data_dir", convert)
