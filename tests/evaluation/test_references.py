"""References and images to score that are torn, empty, or not what their names say."""

import gc
import json
import re

import numpy as np
import pytest

from diffussm_jax.evaluate import evaluate
from tests.conftest import merge
from tests.fuzz.one_line import error_of

# The end of the command closes the files that its errors leave open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


PIXELS = 64  # of a digit
FACTS = json.dumps({"extractor": {"features": "pixels"}})


def images(num=9, *, size=8, channels=1):
    shape = num, size, size, channels
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def close_files():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.npz"
    np.savez(path, images())
    return path


@pytest.fixture
def error(scored_values, whole, tmp_path):
    """The line that scoring ends with, given other files than the whole one."""

    def end(**paths):
        paths = {name: str(path) for name, path in paths.items()}
        values = {"reference": str(whole), "images": str(whole)} | paths
        config = merge(scored_values, {"evaluate": values})
        return error_of(lambda: evaluate(config, tmp_path / "run"))

    return end


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "a flipped byte": flipped,
    "npy": lambda data: b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False}",
    "pickle": lambda data: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "page": lambda data: b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("field", ["reference", "images"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_no_npz(error, whole, tmp_path, damage, field):
    path = tmp_path / "torn.npz"
    path.write_bytes(DAMAGE[damage](whole.read_bytes()))
    assert f"config.evaluate.{field}: {path} " in error(**{field: path})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": images(size=16)}, "are 16 x 16 x 1 .*, and those to score 8 x 8 x 1"),
        ({"arr_0": images(channels=3)}, "are 8 x 8 x 3 .*, and those to score 8 x 8 x 1"),
        ({"arr_0": images(num=0)}, "got uint8"),
        ({"arr_0": images(num=3)}, "has 3 images, and it takes 4"),
        ({"arr_0": images()[:, 0:0]}, "got uint8"),
        ({"arr_0": np.array([{}], object)}, "got object"),
        ({"mu": np.zeros(PIXELS)}, "sigma is not a file in the archive"),
        ({"mu": np.zeros((2, 3)), "sigma": np.eye(6)}, "moments must be"),
        ({"mu": np.full(PIXELS, np.nan), "sigma": np.eye(PIXELS)}, "not all finite"),
        ({"mu": np.zeros(10), "sigma": np.eye(10)}, "has 10: their sizes"),
        ({"arr_0": images(), "facts": "{"}, "cannot be read"),
        ({"arr_0": images(), "facts": '{"extractor": 3}'}, "made with features = None"),
    ],
)
def test_references_of_another_form(error, tmp_path, arrays, message):
    path = tmp_path / "other.npz"
    np.savez(path, **({"facts": FACTS} | arrays))
    assert re.search(message, error(reference=path))
