"""Images at gs:// are those of the disk: a folder of them, and sets that TFDS prepared."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffussm_jax.data import pipeline
from diffussm_jax.data.at_hand import require_same_images
from diffussm_jax.data.buckets import read_sizes
from diffussm_jax.data.builders import DESCRIPTION
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.data.image_files import find_images, read_files, sub_folders
from diffussm_jax.data.placement import require_outside
from diffussm_jax.data.sources import open_images
from diffussm_jax.errors import CommandEnd, StorageError, UserError
from diffussm_jax.evaluation.image_sets import open_given
from diffussm_jax.files.paths import as_path
from tests.conftest import merge

FOLDER = {"image_size": 8, "channels": 3, "num_classes": 2, "eval_split": None}


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of two classes, and what else lies in such folders."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    for index, name in itertools.product(range(6), ("cat", "dog")):
        path = folder / name / "more" / f"{index}.png" if index == 3 else folder / name
        path = path if path.suffix else path / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 11, 3), np.uint8)).save(path)
    for name in ("cat/notes.txt", "dog/.hidden.png", ".git/config.png", "cat/.DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no picture")
    return folder


def copy(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())


@pytest.fixture
def remote(pictures, bucket, storage):
    folder = as_path(f"{bucket}/pictures")
    copy(pictures, folder)
    name = bucket.removeprefix("gs://")  # below: as the web page makes folders
    path = f"/upload/storage/v1/b/{name}/o?uploadType=media&name=pictures%2Fdog%2F"
    status, _, _ = storage.ask("POST", path)
    assert status == 200
    return folder


def batches_of(config, num=4):
    source = open_images(config, config.data.split)
    return source, list(itertools.islice(pipeline.train_batches(config, source), num))


def assert_equal(some, others):
    for batch, other in zip(some, others, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, other[name])


def test_a_folder_is_listed_as_on_the_disk(pictures, remote):
    here, there = (find_images(x, field="f") for x in (pictures, remote))
    assert [x.relative_to(pictures).as_posix() for x in here.paths] == [
        str(x).removeprefix(f"{remote}/") for x in there.paths
    ]
    assert len(here.paths) == len(there.entries) == 12
    assert here.left_out == there.left_out
    assert [x.name for x in sub_folders(remote)] == ["cat", "dog"]
    for path, data in zip(here.paths, read_files(there.paths, field="f"), strict=True):
        assert path.read_bytes() == data


@pytest.mark.parametrize("prepared", ["disk", "bucket"])
def test_a_folder_trains_as_on_the_disk(
    tiny_config, pictures, remote, bucket, tmp_path, prepared, storage
):
    places = {"disk": str(tmp_path / "tfds"), "bucket": f"{bucket}/tfds"}
    data = FOLDER | {"data_dir": str(tmp_path / "tfds"), "cache_dir": str(tmp_path / "cache")}
    here = merge(tiny_config, {"data": data | {"name": f"folder:{pictures}"}})
    data["data_dir"] = places[prepared]
    there = merge(tiny_config, {"data": data | {"name": f"folder:{remote}"}})
    (source, batches), (other, others) = batches_of(here), batches_of(there)
    assert_equal(batches, others)
    first, second = (Fingerprint(**x.facts["fingerprint"]) for x in (source, other))
    assert first.has_images_of(second)
    assert source.facts["class_names"] == other.facts["class_names"] == ["cat", "dog"]
    require_same_images(there, "train", first, made="m", mend="m")
    num = len(storage.lines)
    batches_of(there)  # it is prepared, so that no image is asked for
    assert not [x for x in storage.lines[num:] if ".png" in x and "alt=media" in x]
    (remote / "cat" / "0.png").write_bytes((pictures / "dog" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"1 changed \(cat/0.png\)"):
        require_same_images(there, "train", second, made="m", mend="m")


def test_a_folder_that_is_missing_or_refused_is_named(remote, storage):
    with pytest.raises(UserError, match=f"there is no folder {remote}/none"):
        find_images(remote / "none", field="f")
    paths = find_images(remote, field="f").paths
    with storage.failing("cat/2.png", 403), pytest.raises(CommandEnd, match="cat/2.png.*denies"):
        list(read_files(paths, field="f"))
    paths[1].unlink()
    with pytest.raises(UserError, match=f"f: {paths[1]} cannot be read"):
        list(read_files(paths, field="f"))


def test_a_folder_to_score_is_read_as_on_the_disk(tiny_config, pictures, remote):
    data = merge(tiny_config, {"data": FOLDER}).data
    here, there = (open_given(str(x), data) for x in (pictures, remote))
    assert len(here) == 12 and here.facts() == there.facts()
    np.testing.assert_array_equal(here.read(np.arange(12)), there.read(np.arange(12)))


def test_nothing_is_written_among_the_images(remote):
    with pytest.raises(UserError, match="lies in the folder of images"):
        require_outside(str(remote), f"{remote}/runs", field="--workdir")
    require_outside(str(remote), f"{remote}-runs", field="--workdir")
    require_outside(str(remote), "runs", field="--workdir")


@pytest.fixture
def digits(tiny_config, data_dir, bucket, tmp_path):
    """Configs of digits that are prepared on the disk, and of their copy in a bucket."""
    copy(Path(data_dir), as_path(f"{bucket}/tfds"))
    data = {"split": "train[10%:60%]", "data_dir": data_dir}
    there = {"data_dir": f"{bucket}/tfds", "cache_dir": str(tmp_path / "cache")}
    return merge(tiny_config, {"data": data}), merge(tiny_config, {"data": data | there})


@pytest.mark.parametrize("data", [{}, {"cache_gb": 0.0}, {"in_memory": True}])
def test_a_prepared_set_trains_as_on_the_disk(digits, data):
    here, there = digits
    there = dataclasses.replace(there, data=dataclasses.replace(there.data, **data))
    (source, batches), (other, others) = batches_of(here), batches_of(there)
    assert_equal(batches, others)
    assert source.facts == other.facts


def test_a_prepared_set_that_is_incomplete_or_refused_is_named(digits, storage):
    there = dataclasses.replace(digits[1], data=dataclasses.replace(digits[1].data, cache_gb=0.0))
    source = open_images(there, there.data.split)
    folder = as_path(there.data.data_dir) / "digits" / "1.0.0"
    [file] = [x for x in folder.iterdir() if "train.array_record" in x.name]
    refusal = pytest.raises(CommandEnd, match=f"{file}: .*does not have storage")
    with storage.failing(f"{file.name}.*alt=media", 403), refusal:
        source.example(0)
    file.unlink()
    with pytest.raises(UserError, match=f"{folder} is damaged: {file.name} is missing"):
        open_images(there, there.data.split)


def test_sizes_of_images_are_kept_but_not_those_of_a_bucket_that_refuses(digits, storage, bucket):
    there = dataclasses.replace(digits[1], data=dataclasses.replace(digits[1].data, cache_gb=0.0))
    source = open_images(there, "test[:3]")

    class Record(dict):
        def __missing__(self, name):
            return source._records[self["number"]][name]

    records = [Record(number=number) for number in range(3)]
    kept = as_path(f"{bucket}/sizes.npy")
    with storage.failing("digits-test.*alt=media", 403), pytest.raises(StorageError):
        read_sizes(records, kept, field="f")
    assert not kept.exists()
    for _ in range(2):  # they are read, and then there
        np.testing.assert_array_equal(read_sizes(records, kept, field="f"), np.full((3, 2), 8))
    assert kept.exists()


def test_a_set_that_is_not_all_in_the_bucket_is_prepared_again(tiny_config, bucket, tmp_path):
    data = {"data_dir": f"{bucket}/new", "cache_dir": str(tmp_path / "cache")}
    config = merge(tiny_config, {"data": data})
    folder = as_path(f"{bucket}/new/digits/1.0.0")
    source, batches = batches_of(config)
    (folder / DESCRIPTION).unlink()  # as after a kill
    (folder / "digits-test.array_record-00000-of-00001").unlink()
    assert_equal(batches_of(config)[1], batches)
    assert (folder / DESCRIPTION).exists()
    assert len(source) == 1498 and len(open_images(config, "test")) == 299
