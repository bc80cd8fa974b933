"""The order of examples: a pure function of (seed, epoch, index)."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.data import pipeline
from diffussm_jax.data.pipeline import open_source
from tests.conftest import merge

NUM_RECORDS = 120


class Numbers:
    """A source whose examples are their own indices."""

    facts: dict = {}  # noqa: RUF012
    parallel_reads = 1

    def __len__(self):
        return NUM_RECORDS

    def example(self, index, *, mirrored):
        return {"index": np.asarray(index), "mirrored": np.asarray(mirrored)}


def stream(config, num_steps, *, start_step=0, process_count=1):
    """(index, mirrored) of `num_steps` global batches, as the processes together read them."""
    rows = np.split(np.arange(config.training.batch_size), process_count)
    parts = [
        pipeline.train_batches(config, Numbers(), start_step=start_step, rows=mine) for mine in rows
    ]
    steps = itertools.islice(zip(*parts), num_steps)
    batches = [batch for step in steps for batch in step]
    return [(int(i), bool(m)) for b in batches for i, m in zip(b["index"], b["mirrored"])]


@pytest.fixture
def order_config():
    return from_dict({"training": {"batch_size": 8}, "seed": 3})


@pytest.fixture
def three_epochs(order_config):
    return stream(order_config, 3 * NUM_RECORDS // 8)


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_order_of_three_epochs_is_that_of_one_process(
    order_config, three_epochs, process_count
):
    """Example by example, also after restarts at random steps with other numbers of processes."""
    num_steps = 3 * NUM_RECORDS // 8
    assert stream(order_config, num_steps, process_count=process_count) == three_epochs
    rng = np.random.default_rng(process_count)
    restarts = sorted(rng.choice(np.arange(1, num_steps), 5, replace=False))
    resumed = []
    for start, end in itertools.pairwise([0, *map(int, restarts), num_steps]):
        processes = int(rng.choice([1, 2, 4]))
        resumed += stream(order_config, end - start, start_step=start, process_count=processes)
    assert resumed == three_epochs


def test_epochs_have_every_example_once_in_another_order(three_epochs):
    indices = np.array([index for index, _ in three_epochs]).reshape(3, NUM_RECORDS)
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(NUM_RECORDS), (3, 1)))
    assert len({tuple(epoch) for epoch in indices}) == 3
    mirrored = np.array([flip for _, flip in three_epochs])
    assert 0.4 < mirrored.mean() < 0.6


def test_the_seed_changes_the_order_and_the_workers_do_not(three_epochs):
    num_steps = 3 * NUM_RECORDS // 8
    for workers in (0, 1, 7):
        config = from_dict({"training": {"batch_size": 8}, "seed": 3, "data": {"workers": workers}})
        assert stream(config, num_steps) == three_epochs
    other = from_dict({"training": {"batch_size": 8}, "seed": 4})
    assert stream(other, num_steps) != three_epochs


def train_batches(config, **options):
    return pipeline.train_batches(config, open_source(config, "train"), **options)


def eval_batches(config, **options):
    return pipeline.eval_batches(config, open_source(config, "test"), **options)


def take(batches, num):
    return list(itertools.islice(batches, num))


def test_flips_mirror_half_of_the_images(tiny_config):
    plain = merge(tiny_config, {"training": {"batch_size": 400}})
    flipping = merge(tiny_config, {"training": {"batch_size": 400}, "data": {"flip": True}})
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
    (whole,) = eval_batches(large)
    assert whole["image"].shape == (512, 8, 8, 1)
    halves = [eval_batches(large, rows=rows)[0]["image"] for rows in np.split(np.arange(512), 2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole["image"])


def test_reading_needs_no_tensorflow(data_dir):
    """TensorFlow takes seconds and memory in each process; only preparing a data set needs it."""
    program = (
        "import sys; from diffussm_jax.config import from_dict;"
        "from diffussm_jax.data.pipeline import open_source, train_batches;"
        f"config = from_dict({{'data': {{'data_dir': {data_dir!r}}}}});"
        "next(train_batches(config, open_source(config, 'train')));"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
