"""Folders and TFDS data sets as sources; what is wrong with them is named."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffussm_jax.config import from_dict
from diffussm_jax.data import sources
from diffussm_jax.data.datasets.digits import digits_dataset_builder
from diffussm_jax.data.pipeline import open_source, train_batches
from diffussm_jax.data.sources import ImageSource, open_images
from diffussm_jax.errors import UserError
from tests.conftest import merge
from tests.fuzz.one_line import error_of

SIZE = 16


def config_of(name, tmp_path, **data):
    values = {
        "name": name,
        "data_dir": str(tmp_path / "tfds"),
        "image_size": SIZE,
        "channels": 3,
        "num_classes": 0,
        "eval_split": None,
    }
    return from_dict({"data": values | data, "training": {"batch_size": 2}})


def write_image(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Two classes, the second with a sub-folder of its own, and files that are no images."""
    root = tmp_path / "images"
    for index, name in enumerate(("b/2.png", "a/1.jpg", "a/0.png", "b/more/3.webp")):
        write_image(root / name, index)
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    return root


def test_a_folder_has_its_sub_folders_as_classes(folder, tmp_path):
    source = open_images(config_of(f"folder:{folder}", tmp_path, num_classes=2), "train")
    assert source.facts["class_names"] == ["a", "b"]
    assert [int(source.example(i)["label"]) for i in range(len(source))] == [0, 0, 1, 1]
    expected = Image.fromarray(write_image(tmp_path / "again.png", 2)).resize(
        (SIZE, SIZE), Image.BICUBIC, box=(5, 0, 25, 20)
    )
    image = source.example(0)["image"]
    np.testing.assert_array_equal(image, np.asarray(expected))
    np.testing.assert_array_equal(source.example(0, mirrored=True)["image"], image[:, ::-1])


def test_a_folder_without_sub_folders_has_no_classes(folder, tmp_path):
    source = open_images(config_of(f"folder:{folder / 'a'}", tmp_path), "train")
    assert (len(source), source.facts["class_names"]) == (2, None)
    in_memory = config_of(f"folder:{folder / 'a'}", tmp_path, in_memory=True)
    np.testing.assert_array_equal(
        open_images(in_memory, "train").example(1)["image"], source.example(1)["image"]
    )


def test_a_changed_folder_is_prepared_again(folder, tmp_path):
    config = config_of(f"folder:{folder}", tmp_path)
    assert len(open_images(config, "train")) == 4
    write_image(folder / "a" / "new.png", 9)
    assert len(open_images(config, "train")) == 5
    assert len(open_images(config, "train[:40%]")) == 2


def test_another_process_may_prepare_a_folder_meanwhile(folder, tmp_path, monkeypatch):
    make_builder = sources.make_builder

    def make_before_the_other_has_finished(config):
        builder = make_builder(config)
        make_builder(config).download_and_prepare()
        return builder

    monkeypatch.setattr(sources, "make_builder", make_before_the_other_has_finished)
    assert len(open_images(config_of(f"folder:{folder}", tmp_path), "train")) == 4


@pytest.mark.parametrize(
    ("break_it", "options", "message"),
    [
        (shutil.rmtree, {}, "there is no folder"),
        (lambda f: write_image(f / "x.png"), {}, r"x.png\) beside sub-folders \(a\)"),
        (lambda f: (f / "c").mkdir(), {}, "class 'c' of .* has no images"),
        (lambda f: f, {"num_classes": 3}, "set --config.data.num_classes=2, or 0"),
        (lambda f: [shutil.rmtree(f / x) for x in "ab"], {}, "has no images; left out 1: 1 hid"),
    ],
)
def test_folders_that_do_not_fit(folder, tmp_path, break_it, options, message):
    break_it(folder)
    with pytest.raises(UserError, match=message) as error:
        open_images(config_of(f"folder:{folder}", tmp_path, **options), "train")
    assert "\n" not in str(error.value)


def test_an_empty_class_may_be_kept(folder, tmp_path):
    before = config_of(f"folder:{folder}", tmp_path, num_classes=2)
    assert int(open_images(before, "train").example(3)["label"]) == 1
    (folder / "aa").mkdir()
    config = config_of(f"folder:{folder}", tmp_path, on_error="skip", num_classes=3)
    source = open_images(config, "train")
    assert source.facts["class_names"] == ["a", "aa", "b"]
    assert int(source.example(3)["label"]) == 2


BAD = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:400]),
    "no image": lambda path: path.write_text("hello"),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_bad_file_is_named(folder, tmp_path, damage):
    BAD[damage](folder / "a" / "1.jpg")
    config = config_of(f"folder:{folder}", tmp_path)
    with pytest.raises(UserError, match=r"record 1 of folder:.* \(a/1.jpg\): .*"):
        for _, batch in zip(range(3), train_batches(config, open_source(config, "train"))):
            assert batch
    skipping = config_of(f"folder:{folder}", tmp_path, on_error="skip")
    with pytest.raises(UserError, match="1 of 4 records are bad, and no more than 1%"):
        for _, batch in zip(range(3), train_batches(skipping, open_source(skipping, "train"))):
            assert batch


def test_one_bad_file_in_a_hundred_is_skipped_the_same_way_each_time(tmp_path, caplog):
    root = tmp_path / "images"
    for index in range(120):
        write_image(root / f"{index:03d}.png", index)
    (root / "050.png").write_bytes(b"")
    config = config_of(f"folder:{root}", tmp_path, on_error="skip", flip=False)
    source = open_source(config, "train")
    with caplog.at_level("WARNING", "diffussm_jax"):
        epoch = [b for _, b in zip(range(60), train_batches(config, source))]
        again = [b for _, b in zip(range(60), train_batches(config, source))]
    assert caplog.text.count("skipped (1 of 120") == 2  # once a pass
    assert "(050.png): the file is empty" in caplog.text
    images = np.concatenate([batch["image"] for batch in epoch])
    np.testing.assert_array_equal(images, np.concatenate([batch["image"] for batch in again]))
    next_one = source.example(51)["image"]
    assert sum(np.array_equal(image, next_one) for image in images) == 2


def test_labels_must_be_below_the_number_of_classes(tiny_config, tmp_path):
    write_image(tmp_path / "image.png")
    record = {"image": (tmp_path / "image.png").read_bytes(), "label": 10}
    source = ImageSource([record], from_dict(tiny_config).data, facts={})
    with pytest.raises(UserError, match=r"label 10 is not below data.num_classes = 10"):
        source.example(0)


def test_a_corrupt_record_is_named(tmp_path, data_dir):
    """One bit of the data set's file."""
    shutil.copytree(data_dir, tmp_path / "tfds")
    (file,) = (tmp_path / "tfds").rglob("digits-train.array_record*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    config = config_of("digits", tmp_path, channels=1)
    source = open_images(config, "train")
    with pytest.raises(UserError, match=r"record \d+ of digits.*: .*"):
        for index in range(len(source)):
            source.example(index)


PREPARED_DAMAGE = {
    "torn description": lambda folder: tear(folder / "dataset_info.json"),
    "no description": lambda folder: (folder / "dataset_info.json").unlink(),
    "missing shard": lambda folder: next(folder.glob("*array_record*")).unlink(),
    "torn shard": lambda folder: tear(next(folder.glob("*array_record*"))),
}


def tear(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", PREPARED_DAMAGE)
def test_a_damaged_prepared_data_set_says_what_mends_it(folder, tmp_path, damage):
    config = config_of(f"folder:{folder}", tmp_path)
    open_images(config, "train")
    (prepared,) = (tmp_path / "tfds").glob("folder_*/[0-9]*")
    PREPARED_DAMAGE[damage](prepared)
    error = error_of(lambda: open_images(config, "train"))
    assert "is damaged: " in error
    assert f"; remove {prepared}, and the same command prepares it again" in error
    shutil.rmtree(prepared)
    assert len(open_images(config, "train")) == 4


@pytest.mark.parametrize("damage", ["dataset_info.json", "features.json", "digits-train*"])
def test_a_damaged_data_set_that_is_not_prepared_here(damage, tiny_config, tmp_path, data_dir):
    """TFDS knows it by its files alone, so that it must be copied or prepared again."""
    foreign = tmp_path / "digits_of_others" / "1.0.0"
    shutil.copytree(f"{data_dir}/digits/1.0.0", foreign)
    next(foreign.glob(damage)).unlink()
    data = {"name": "digits_of_others", "data_dir": str(tmp_path)}
    config = merge(tiny_config, {"data": data})
    error = error_of(lambda: open_images(config, "train"))
    assert f"the prepared data set in {foreign.parent}" in error
    assert "; copy its files again, or remove that folder and prepare it again" in error


def test_digits_are_scikit_learns(tiny_config):
    config = merge(tiny_config, {})
    digits = load_digits()
    for split, held_out in (("train", False), ("test", True)):
        chosen = (np.arange(len(digits.images)) % 6 == 5) == held_out
        source = open_images(config, split)
        records = [source.example(index) for index in range(len(source))]
        actual = np.stack([record["image"] for record in records])
        expected = np.round(digits.images[chosen] * 255 / 16)[..., None]
        order = np.lexsort(actual.reshape(len(actual), -1).T)
        expected_order = np.lexsort(expected.reshape(len(expected), -1).T)
        np.testing.assert_array_equal(actual[order], expected[expected_order])
        labels = np.array([record["label"] for record in records])
        np.testing.assert_array_equal(labels[order], digits.target[chosen][expected_order])


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ({}, "validation", "has no split 'validation'; it has (train, test|test, train)"),
        ({}, "train[:0%]", "has no images"),
        ({"name": "no_such_set"}, "train", "TFDS has no data set 'no_such_set'"),
        (
            {"name": "cifar10"},
            "train",
            r"'cifar10', file_format='array_record', data_dir='.*'\).download_and_prep",
        ),
        (
            {"name": "fashion_mnist"},
            "train",
            r"or, with its four files in FOLDER: python -m diffussm_jax.convert.fashion_mnist FOLD",
        ),
        ({"num_classes": 9}, "train", "set --config.data.num_classes=10, or 0"),
        ({"space": "latents", "image_size": 256}, "train", "with --mode=encode first"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tiny_config, data, split, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(merge(tiny_config, {"data": data}), split)
    assert "\n" not in str(error.value)


def test_data_without_random_access_names_the_conversion(tiny_config, tmp_path, monkeypatch):
    """A prepared data set whose files are tfrecord."""
    builder = digits_dataset_builder.Builder(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    info = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    values = json.loads(info.read_text())
    assert values["fileFormat"] == "array_record"
    info.write_text(json.dumps(values | {"fileFormat": "tfrecord"}))
    for file in info.parent.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    renamed = builder.__class__(data_dir=str(tmp_path))
    monkeypatch.setattr("diffussm_jax.data.sources.tfds.builder", lambda *_, **__: renamed)
    config = merge(tiny_config, {"data": {"name": "foreign"}})
    command = f"tfds convert_format --dataset_dir={tmp_path / 'digits'} "
    with pytest.raises(UserError, match=re.escape(command)):
        open_images(config, "train")
