"""Data sets in parquet: their splits, columns, order and faults; each mistake is one line."""

import io
import json
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import from_object
from diffussm_jax.data.at_hand import require_same_images
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.parquet_files import splits_of
from diffussm_jax.data.pipeline import open_source, train_batches
from diffussm_jax.data.sources import Buckets, open_images
from diffussm_jax.errors import UserError

NAMES = ["cat", "dog", "eel"]
GROUP = 4  # rows of a row group


def config_of(name, tmp_path, **data):
    values = {
        "name": str(name),
        "data_dir": str(tmp_path / "tfds"),
        "image_size": 8,
        "channels": 3,
        "num_classes": 3,
        "eval_split": None,
    }
    return from_dict({"data": values | data, "training": {"batch_size": 4}})


def png(number, size=(8, 8), **options):
    """An image of one colour, which tells its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(file, "png", **options)
    return file.getvalue()


def table_of(numbers, images=None, *, with_names=True, **columns):
    """Images as Hugging Face's libraries write them, with their number modulo 3 as label."""
    images = [png(x) for x in numbers] if images is None else images
    image = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array([f"{x}.png" for x in numbers])], ["bytes", "path"]
    )
    labels = pa.array([x % 3 for x in numbers], pa.int64())
    table = pa.table({"image": image, "label": labels, **columns})
    if not with_names:
        return table
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
    note = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": note})


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=GROUP)


@pytest.fixture
def folder(tmp_path):
    """30 images to train on in three files, and 6 to test on."""
    root = tmp_path / "animals"
    for part in range(3):
        numbers = range(10 * part, 10 * part + 10)
        write(root / "data" / f"train-{part:05d}-of-00003.parquet", table_of(numbers))
    write(root / "data" / "test-00000-of-00001.parquet", table_of(range(100, 106)))
    return root


def numbers_of(source):
    return [int(source.example(i)["image"][0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(30)),
        ("test", range(100, 106)),
        ("train[1%:]", range(30)),
        ("train[10%:]", range(3, 30)),
        ("train[-12:25]", range(18, 25)),
        ("train[:5]+test[3:]", [0, 1, 2, 3, 4, 103, 104, 105]),
        ("all", [*range(100, 106), *range(30)]),
    ],
)
def test_splits_are_cut_as_tfds_cuts_them(folder, tmp_path, split, expected):
    source = open_images(config_of(f"parquet:{folder}", tmp_path), split)
    assert numbers_of(source) == list(expected)
    assert [int(source.example(i)["label"]) for i in range(len(source))] == [
        x % 3 for x in expected
    ]
    assert source.facts["class_names"] == NAMES
    assert source.facts["source"] == f"parquet:animals, {len(expected)} images"


def test_rows_come_in_any_order_whatever_is_kept(folder, tmp_path):
    """A cache that holds one row group reads most of them again, and gives the same images."""
    order = np.random.default_rng(0).permutation(30).tolist()
    for size in (1e-9, 1.0):
        config = config_of(f"parquet:{folder}", tmp_path, parquet_cache_gb=size)
        source = open_images(config, "train")
        assert [int(source.example(i)["image"][0, 0, 0]) for i in order] == order


def test_threads_share_what_one_of_them_reads(folder, tmp_path):
    source = open_images(config_of(f"parquet:{folder}", tmp_path), "train")
    found = {}

    def read(thread):
        found[thread] = numbers_of(source)

    threads = [threading.Thread(target=read, args=(x,)) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {x: list(range(30)) for x in range(8)}


def test_batches_go_on_where_a_run_stopped(folder, tmp_path):
    config = config_of(f"parquet:{folder}", tmp_path)
    straight = [x for _, x in zip(range(9), train_batches(config, open_source(config, "train")))]
    resumed = train_batches(config, open_source(config, "train"), start_step=5)
    for expected, batch in zip(straight[5:], resumed):
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)
    colours = [x["image"][:, 0, 0, 0] for x in straight]
    assert sorted(np.concatenate(colours)[:30].tolist()) == list(range(30))  # an epoch


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        (["train.parquet", "test.parquet"], None, {"train", "test"}),
        (["data/train-00000-of-00001-0123456789abcdef.parquet"], None, {"train"}),
        (["0000.parquet", "0001.parquet", "README.md"], None, {"train"}),
        (["default/train/0000.parquet", "default/test/0000.parquet"], None, {"train", "test"}),
        (["a/train/0000.parquet", "b/test/0000.parquet"], "b", {"test"}),
        (["a/train-0.parquet", "default/test-0.parquet"], None, {"test"}),
    ],
)
def test_names_of_files_say_the_split(names, config, expected):
    splits = splits_of(names, config=config, named="x")
    assert splits.keys() == expected
    assert sum(map(len, splits.values())) <= len(names)


def test_a_column_of_bytes_and_one_of_integers_are_found_without_notes(tmp_path):
    numbers = list(range(5))
    table = pa.table(
        {
            "text": [str(x) for x in numbers],
            "picture": pa.array([png(x) for x in numbers], pa.binary()),
            "kind": pa.array([x % 3 for x in numbers], pa.uint8()),
        }
    )
    write(tmp_path / "set" / "train.parquet", table)
    source = open_images(config_of(f"parquet:{tmp_path / 'set'}", tmp_path), "train")
    assert numbers_of(source) == numbers
    assert source.facts["class_names"] == ["0", "1", "2"]
    config = config_of(f"parquet:{tmp_path / 'set'}", tmp_path, num_classes=0)
    assert open_images(config, "train").facts["class_names"] == ["0", "1", "2"]


def test_columns_are_chosen_where_several_could_be(tmp_path):
    other = pa.array([png(200 + x) for x in range(6)], pa.binary())
    kinds = pa.array([0, 1, 2, 2, 1, 0], pa.int32())
    table = table_of(range(6), with_names=False, other=other, kind=kinds)
    write(tmp_path / "set" / "train.parquet", table)
    name = f"parquet:{tmp_path / 'set'}"
    with pytest.raises(UserError, match=r"may mean label or kind: set --config.data.label_column="):
        open_images(config_of(name, tmp_path), "train")
    source = open_images(
        config_of(name, tmp_path, image_column="other", label_column="kind"), "train"
    )
    assert numbers_of(source) == list(range(200, 206))
    assert [int(source.example(i)["label"]) for i in range(6)] == kinds.to_pylist()
    unlabelled = open_images(config_of(name, tmp_path, num_classes=0), "train")
    assert unlabelled.facts["class_names"] is None
    fingerprints = {x.facts["fingerprint"]["sha256"] for x in (source, unlabelled)}
    assert len(fingerprints) == 2


def test_pictures_are_turned_and_sorted_into_buckets(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    images = [png(0, (16, 8)), png(1, (8, 16)), png(2, (16, 8), exif=exif)]
    write(tmp_path / "set" / "train.parquet", table_of(range(3), images))
    config = config_of(
        f"parquet:{tmp_path / 'set'}", tmp_path, image_size=(8, 16), buckets=("8x16", "16x8")
    )
    source = open_images(config, "train")
    assert isinstance(source, Buckets)
    assert [list(run) for run in source.runs] == [[0], [1, 2]]
    assert numbers_of(source) == [0, 1, 2]
    assert source.example(2)["image"].shape == (16, 8, 3)


def test_the_fingerprint_is_of_the_images_and_not_of_their_place(folder, tmp_path):
    name = f"parquet:{folder}"
    before = open_images(config_of(name, tmp_path), "train").facts["fingerprint"]
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "animals")
    config = config_of(f"parquet:{moved}", tmp_path)
    assert open_images(config, "train").facts["fingerprint"] == before
    assert open_images(config, "train[:29]").facts["fingerprint"] != before
    changed = table_of([20, 21, 22, 23, 24, 25, 26, 27, 28, 77])
    write(moved / "data" / "train-00002-of-00003.parquet", changed)
    assert open_images(config, "train").facts["fingerprint"] != before
    assert portable_name(name) == portable_name(config.data.name) == "parquet:animals"


def test_images_at_hand_are_compared_with_those_of_latents(folder, tmp_path, caplog):
    config = config_of(f"parquet:{folder}", tmp_path)
    before = from_object(Fingerprint, open_images(config, "train").facts["fingerprint"])
    words = {"made": "the latents were encoded from", "mend": "encode again"}
    require_same_images(config, "train", before, **words)
    write(folder / "data" / "train-00002-of-00003.parquet", table_of(range(60, 70)))
    with pytest.raises(UserError, match="not those that the latents were encoded from: 30 images"):
        require_same_images(config, "train", before, **words)
    shutil.rmtree(folder)
    with caplog.at_level("INFO", "diffussm_jax"):
        require_same_images(config, "train", before, **words)
    assert "is not at hand, so it is not compared with the 30 images" in caplog.text


def test_a_bad_image_is_named_and_may_be_skipped(tmp_path):
    numbers = [x % 250 for x in range(200)]
    images = [png(x) for x in numbers]
    images[7] = b"no image"
    write(tmp_path / "set" / "train.parquet", table_of(numbers, images))
    config = config_of(f"parquet:{tmp_path / 'set'}", tmp_path)
    with pytest.raises(UserError, match=r"record 7 of parquet:.* \(7.png\): no image that"):
        for _ in zip(range(50), train_batches(config, open_source(config, "train"))):
            pass
    config = config_of(f"parquet:{tmp_path / 'set'}", tmp_path, on_error="skip")
    batches = train_batches(config, open_source(config, "train"))
    assert sum(len(x["label"]) for _, x in zip(range(50), batches)) == 200


def test_a_damaged_part_of_a_file_is_a_bad_record(folder, tmp_path):
    path = folder / "data" / "train-00001-of-00003.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(data))
    source = open_images(config_of(f"parquet:{folder}", tmp_path), "train")
    assert int(source.example(10)["image"][0, 0, 0]) == 10
    with pytest.raises(
        UserError, match="record 15 of .*train-00001-of-00003.parquet, row 5"
    ) as error:
        source.example(15)
    assert "\n" not in str(error.value)


def without(name):
    return lambda folder: (folder / "data" / name).unlink()


def rewritten(table, name="train-00000-of-00003.parquet"):
    return lambda folder: write(folder / "data" / name, table)


def cut(folder):
    path = folder / "data" / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-3])


def second_config(folder):
    write(folder / "zoo" / "train.parquet", table_of(range(3)))


@pytest.mark.parametrize(
    ("break_it", "options", "message"),
    [
        (shutil.rmtree, {}, "there is no folder"),
        (lambda f: shutil.rmtree(f / "data"), {}, "has no .parquet files"),
        (without("train-00001-of-00003.parquet"), {}, r"has 2 files like .*, whose name says 3"),
        (cut, {}, "train-00001-of-00003.parquet is damaged: .*; bring the file again"),
        (second_config, {}, "name one of zoo behind it"),
        (lambda f: f, {"split": "valid"}, "has no split 'valid'; it has test, train and their"),
        (lambda f: f, {"split": "train[90:200]"}, r"has no split 'train\[90:200\]'"),
        (lambda f: f, {"split": "train[:0]"}, r"split 'train\[:0\]' .* has no images"),
        (lambda f: f, {"num_classes": 4}, "has 3 classes, but config.data.num_classes = 4"),
        (lambda f: f, {"image_column": "photo"}, "has no column 'photo'; it has image .*, label"),
        (lambda f: f, {"image_column": "label"}, "image_column: 'label' of .* is int64, not bytes"),
        (lambda f: f, {"label_column": "image"}, "label_column: 'image' of .*, not integers"),
        (rewritten(pa.table({"label": [1, 2]})), {}, "has no column of images; it has label"),
        (
            rewritten(pa.table({"label": [1]}), "train-00002-of-00003.parquet"),
            {},
            "train-00002-of-00003.parquet has no column image of struct",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(folder, tmp_path, break_it, options, message):
    break_it(folder)
    config = config_of(f"parquet:{folder}", tmp_path, **options)
    with pytest.raises(UserError, match=message) as error:
        open_images(config, config.data.split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("has_statistics", [True, False])
def test_labels_beyond_the_classes_are_one_line(tmp_path, has_statistics):
    path = tmp_path / "set" / "train.parquet"
    path.parent.mkdir()
    table = table_of(range(9), with_names=False)
    pq.write_table(table, path, write_statistics=has_statistics)
    with pytest.raises(UserError, match=r"has labels up to 2 in 'label', .*num_classes=3"):
        open_images(config_of(f"parquet:{tmp_path / 'set'}", tmp_path, num_classes=2), "train")
