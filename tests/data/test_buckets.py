"""Images of several shapes in one folder: which bucket each is in, and in which order they come."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.data import pipeline
from diffussm_jax.data.buckets import assign
from diffussm_jax.data.sources import Buckets, open_images
from diffussm_jax.errors import UserError
from diffussm_jax.train import train
from tests.conftest import merge
from tests.jobs import command, metrics, run
from tests.saved_runs import assert_equal, restored

SHAPES = {(8, 8): 21, (4, 16): 12, (16, 4): 6}  # height and width, and how many images
NAMES = "8x8,4x16,16x4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "shapes")


def write_pictures(folder):
    """Write grey images of 4 times these sizes; some upright ones are turned by their EXIF tag.

    The value of a pixel is the number of its image.
    """
    folder.mkdir()
    turn = Image.Exif()
    turn[0x0112] = 6
    for (height, width), num in SHAPES.items():
        for number in range(num):
            image = Image.new("L", (4 * width, 4 * height), number)
            is_turned = height > width and number < 3
            image = image.transpose(Image.Transpose.ROTATE_90) if is_turned else image
            path = folder / f"{height}x{width}-{number:02d}.png"
            image.save(path, exif=turn if is_turned else None)
    return folder


def values_of(folder, tmp_path, **data):
    data = {"name": f"folder:{folder}", "data_dir": str(tmp_path / "tfds"), "num_classes": 0} | data
    return {"data": data | {"buckets": tuple(NAMES.split(","))}, "training": {"batch_size": 4}}


def test_an_image_is_in_the_bucket_of_the_nearest_ratio():
    sizes = np.array([[100, 100], [100, 120], [100, 160], [160, 100], [0, 0], [1, 99]])
    square, landscape, portrait = assign(sizes, [(8, 8), (6, 10), (10, 6)])
    assert [x.tolist() for x in (square, landscape, portrait)] == [[0, 1, 4], [2, 5], [3]]
    # sqrt(10 / 6) is half-way between the two by their logarithms.
    for width, bucket in ((128, 0), (130, 1)):
        assert assign(np.array([[100, width]]), [(8, 8), (6, 10)])[bucket].tolist() == [0]


def test_a_batch_is_of_one_bucket_and_each_has_its_share(folder, tmp_path):
    config = from_dict(values_of(folder, tmp_path))
    source = open_images(config, "train")
    assert [len(x) for x in source.runs] == list(SHAPES.values())
    batches = list(itertools.islice(pipeline.train_batches(config, source), 39))
    shapes = [batch["image"].shape for batch in batches]
    for sides, num in SHAPES.items():
        own = [b["image"] for b, s in zip(batches, shapes) if s == (4, *sides, 1)]
        assert len(own) == num  # 39 batches of 39 images are four epochs
        seen = np.concatenate(own)[:num, 0, 0, 0]
        assert sorted(seen) == list(range(num))
    again = pipeline.train_batches(config, source, start_step=17, rows=np.arange(1, 3))
    for batch, ours in zip(batches[17:], itertools.islice(again, 22)):
        np.testing.assert_array_equal(batch["image"][1:3], ours["image"])
    indices = pipeline.example_indices(config, source.runs, step=17)
    for index, image in zip(indices, batches[17]["image"]):
        np.testing.assert_array_equal(source.example(int(index))["image"], image)
    held_out = pipeline.eval_batches(config, source)
    assert len({x["image"].shape for x in held_out}) == 3


def test_a_bad_image_is_replaced_by_one_of_its_bucket(folder, tmp_path):
    config = from_dict(values_of(folder, tmp_path))
    source = open_images(config, "train")
    faults = pipeline.Faults("skip", num_records=1000)
    bad = source.runs[1][-1]

    class Damaged(Buckets):
        def example(self, index, *, mirrored=False):
            if index == bad:
                raise pipeline.BadRecordError("damaged")
            return super().example(index, mirrored=mirrored)

    example = pipeline.read_good(Damaged(source.sources), bad, False, faults)
    expected = source.example(source.runs[1][0])
    np.testing.assert_array_equal(example["image"], expected["image"])


def test_splits_keep_sizes_of_their_own(folder, tmp_path):
    values = values_of(folder, tmp_path)
    halves = []
    for split in ("train[:36]", "train[-36:]", "train[:36]"):
        source = open_images(from_dict(values), split)
        halves.append([len(run) for run in source.runs])
    assert halves == [[18, 12, 6], [21, 12, 3], [18, 12, 6]]


def test_the_size_of_a_bucket_is_drawn_as_it_was_learnt(folder, tmp_path):
    config = from_dict(values_of(folder, tmp_path), {"sample.image_size": "4,16"})
    drawn = as_drawn(config.sample, config)
    assert drawn.model == config.model
    assert drawn.grid == (4, 16, 1)


def test_a_shape_without_images_is_refused(folder, tmp_path):
    values = values_of(folder, tmp_path)
    shapes = (*values["data"]["buckets"], "2x32")
    config = from_dict(values | {"data": values["data"] | {"buckets": shapes}})
    with pytest.raises(UserError, match=r"config.data.buckets: no image .* nearest to 2x32: leave"):
        open_images(config, "train")


@pytest.mark.slow
def test_a_run_on_buckets_goes_on_to_the_same_bits(tiny_config, folder, tmp_path):
    data = values_of(folder, tmp_path)["data"] | {"eval_split": "train"}
    values = tiny_config | {"data": data}

    def config_of(num_steps):
        training = {"num_steps": num_steps, "batch_size": 8, "eval_every": 3, "eval_batches": 3}
        return merge(values, {"training": training})

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config_of(9), whole)
    train(config_of(3), parts)
    train(config_of(9), parts)
    assert_equal(restored(config_of(9), parts).state, restored(config_of(9), whole).state)
    assert [x["eval_loss"] for x in metrics(whole) if "eval_loss" in x]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_train_on_the_same_buckets_as_one(folder, tmp_path, num_processes):
    changes = {"data.name": f"folder:{folder}", "data.num_classes": 0, "data.buckets": NAMES}
    changes |= {
        "data.eval_split": None,
        "sample.cfg_scale": 1,
        "training.batch_size": 8,
        "training.num_steps": 6,
    }
    losses = []
    for number in (1, num_processes):
        workdir = tmp_path / f"{number}"
        line = command(workdir, str(tmp_path / "tfds"), **changes)
        words = [sys.executable, "-m", "launch.local", f"--processes={number}"]
        words += [f"--devices={4 // number}", "--"]
        result = run([*words, *line])
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr
        losses.append([x["loss"] for x in metrics(workdir) if "loss" in x])
    np.testing.assert_allclose(*losses, rtol=1e-5)
