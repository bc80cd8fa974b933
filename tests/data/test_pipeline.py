"""The order of examples: a pure function of (seed, epoch, index)."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffussm_jax.config import from_dict
from diffussm_jax.data import pipeline, transforms
from diffussm_jax.data.sources import open_source
from diffussm_jax.errors import UserError
from tests.conftest import merge


def train_batches(config, **options):
    return pipeline.train_batches(config, open_source(config, "train"), **options)


def eval_batches(config):
    return pipeline.eval_batches(config, open_source(config, "test"))


def take(batches, num):
    return list(itertools.islice(batches, num))


def test_digits_are_scikit_learns(tiny_config):
    config = merge(tiny_config, {})
    digits = load_digits()
    for split, held_out in (("train", False), ("test", True)):
        chosen = (np.arange(len(digits.images)) % 6 == 5) == held_out
        records = list(open_source(config, split))
        actual = np.stack([record["image"] for record in records])
        expected = np.round(digits.images[chosen] * 255 / 16)[..., None]
        order = np.lexsort(actual.reshape(len(actual), -1).T)
        expected_order = np.lexsort(expected.reshape(len(expected), -1).T)
        np.testing.assert_array_equal(actual[order], expected[expected_order])
        labels = np.array([record["label"] for record in records])
        np.testing.assert_array_equal(
            labels[order], digits.target[chosen][expected_order]
        )


def test_an_epoch_has_every_image_once_and_the_next_another_order(tiny_config):
    config = merge(tiny_config, {"training": {"batch_size": 2}})
    size = len(open_source(config, "train"))
    assert size % 2 == 0
    stream = np.concatenate([b["image"] for b in take(train_batches(config), size)])
    first, second = stream[:size].reshape(size, -1), stream[size:].reshape(size, -1)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(
        first[np.lexsort(first.T)], second[np.lexsort(second.T)]
    )


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_divide_each_step_and_keep_its_order(tiny_config, process_count):
    config = merge(tiny_config, {"data": {"flip": True}})
    whole = take(train_batches(config), 5)
    parts = [
        take(train_batches(config, process_index=index, process_count=process_count), 5)
        for index in range(process_count)
    ]
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("start", [1, 93, 250])
def test_starting_late_goes_on_where_the_stream_was(tiny_config, start):
    config = merge(tiny_config, {"data": {"flip": True}})
    straight = take(train_batches(config), start + 2)[start:]
    for resumed, expected in zip(
        take(train_batches(config, start_step=start), 2), straight
    ):
        np.testing.assert_array_equal(resumed["image"], expected["image"])


def test_the_seed_and_the_threads(tiny_config):
    (first,) = take(train_batches(merge(tiny_config, {})), 1)
    (same,) = take(train_batches(merge(tiny_config, {"data": {"num_threads": 1}})), 1)
    tiny_config = tiny_config | {"seed": 1}
    (other,) = take(train_batches(from_dict(tiny_config)), 1)
    np.testing.assert_array_equal(first["image"], same["image"])
    assert not np.array_equal(first["image"], other["image"])


def test_flips_mirror_half_of_the_images(tiny_config):
    plain = merge(tiny_config, {"training": {"batch_size": 400}})
    flipping = merge(
        tiny_config, {"training": {"batch_size": 400}, "data": {"flip": True}}
    )
    (a,), (b,) = take(train_batches(plain), 1), take(train_batches(flipping), 1)
    mirrored = [np.array_equal(y, x[:, ::-1]) for x, y in zip(a["image"], b["image"])]
    same = [np.array_equal(y, x) for x, y in zip(a["image"], b["image"])]
    assert all(m or s for m, s in zip(mirrored, same))
    assert 0.4 < np.mean(mirrored) < 0.6


def test_held_out_batches_are_fixed_and_disjoint_from_training(tiny_config):
    config = merge(tiny_config, {"training": {"eval_batches": 3}})
    once, again = eval_batches(config), eval_batches(config)
    assert len(once) == 3
    np.testing.assert_array_equal(once[2]["image"], again[2]["image"])
    large = merge(tiny_config, {"training": {"batch_size": 512}})
    assert eval_batches(large)[0]["image"].shape == (512, 8, 8, 1)


def test_ranges_are_inverse():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    scaled = transforms.to_model_range(values)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    np.testing.assert_array_equal(transforms.to_uint8(scaled[None])[0], values)


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ({}, "validation", "has no split 'validation'; it has train, test"),
        ({"image_size": 16}, "train", "config.data.image_size"),
        ({"name": "no_such_set"}, "train", "TFDS has no data set 'no_such_set'"),
        (
            {"name": "cifar10"},
            "train",
            "tfds build cifar10 --file_format=array_record --data_dir=",
        ),
        ({"space": "latents", "image_size": 256}, "train", "cached latents"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tiny_config, data, split, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(merge(tiny_config, {"data": data}), split)
    assert "\n" not in str(error.value)


def test_reading_needs_no_tensorflow(data_dir):
    """TensorFlow takes seconds and memory in each process; only preparing a data set needs it."""
    program = (
        "import sys; from diffussm_jax.config import from_dict;"
        "from diffussm_jax.data.pipeline import train_batches;"
        "from diffussm_jax.data.sources import open_source;"
        f"config = from_dict({{'data': {{'data_dir': {data_dir!r}}}}});"
        "next(train_batches(config, open_source(config, 'train')));"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
