"""Fashion-MNIST from its four files: those of Debian's package, and others of the same names."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.convert.fashion_mnist import SHA256, convert
from diffussm_jax.data.sources import open_images
from diffussm_jax.errors import UserError

FILES = Path("/usr/share/datasets/fashion-mnist")


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read: .*No such"):
        convert(tmp_path, tmp_path / "tfds")


@pytest.mark.parametrize(
    ("content", "message"),
    [(gzip.compress(b"digits"), "is not Fashion-MNIST's"), (b"digits", "cannot be read")],
    ids=["other content", "no gzip"],  # a gzip file's bytes hold the time: no name for a test
)
def test_other_files_of_the_same_names_are_refused(tmp_path, content, message):
    for name in SHA256:
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "fashion_mnist").exists()


@pytest.mark.slow
@pytest.mark.skipif(not FILES.is_dir(), reason="sudo apt-get install dataset-fashion-mnist")
def test_every_image_of_the_files_stands_in_a_black_border(tmp_path):
    assert convert(FILES, tmp_path).endswith(": 60000 of train and 10000 of test\n")
    assert convert(FILES, tmp_path).endswith("is there already\n")
    data = {"name": "fashion_mnist", "data_dir": str(tmp_path), "image_size": 32, "pad": 2}
    source = open_images(from_dict({"data": data}), "test")
    examples = [source.example(index) for index in range(len(source))]
    padded = np.stack([example["image"][..., 0] for example in examples])
    crops = padded[:, 2:-2, 2:-2]
    assert padded.shape == (10_000, 32, 32)
    assert padded.sum() == crops.sum()
    labels = np.stack([example["label"] for example in examples])
    expected = read("t10k-images-idx3-ubyte", header=16).reshape(-1, 28, 28)
    assert as_set(crops, labels) == as_set(expected, read("t10k-labels-idx1-ubyte", header=8))
    assert source.facts["class_names"][:2] == ["T-shirt/top", "Trouser"]


def read(name, *, header):
    return np.frombuffer(gzip.decompress((FILES / f"{name}.gz").read_bytes()), np.uint8)[header:]


def as_set(images, labels):
    """Images with their labels in an order of their own, since TFDS shuffles them."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))
