"""Caches of latents and data sets that are damaged, misnamed or point elsewhere."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from diffussm_jax.config import from_dict
from diffussm_jax.data import latents
from diffussm_jax.data.latent_shards import write_shard
from diffussm_jax.data.latents import SHARED_FIELDS, LatentSource, record_dtype
from diffussm_jax.data.pipeline import open_source, train_batches
from tests.conftest import merge
from tests.fuzz.one_line import JSON_DAMAGE, error_of


@pytest.fixture(scope="module")
def whole_cache(tiny_config, tmp_path_factory):
    """A config and the cache of latents that it trains from."""
    root = tmp_path_factory.mktemp("latents")
    data = {
        "space": "latents",
        "image_size": 32,
        "channels": 3,
        "num_classes": 2,
        "name": "pictures",
        "latents_dir": str(root),
    }
    config = merge(tiny_config, {"data": data})
    folder = latents.cache_folder(config, "train")
    folder.mkdir(parents=True)
    path = folder / "moments-00000-of-00001.array_record"
    record = np.zeros((), record_dtype(config)).tobytes()
    write_shard(path, iter([(record, record)] * 4))
    shard = json.loads(path.with_suffix(".json").read_text())
    fingerprint = {"data_set": "pictures/1.0.0", "num_images": 4, "sha256": "0" * 64}
    names = {"class_names": ["a", "b"], "fingerprint": fingerprint, "shards": [shard]}
    manifest = latents.shared_fields(config, "train") | names
    (folder / "manifest.json").write_text(json.dumps(manifest))
    LatentSource(config, "train")
    return config, folder


@pytest.fixture
def cache(whole_cache, tmp_path):
    """The same, to damage."""
    config, _ = whole_cache
    copied = shutil.copytree(config.data.latents_dir, tmp_path / "latents")
    data = dataclasses.replace(config.data, latents_dir=str(copied))
    config = dataclasses.replace(config, data=data)
    return config, latents.cache_folder(config, "train")


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_manifests(cache, damage):
    config, folder = cache
    (folder / "manifest.json").write_bytes(JSON_DAMAGE[damage])
    assert "manifest" in error_of(lambda: LatentSource(config, "train"))


@pytest.mark.parametrize(
    "shards",
    [
        *(None, 3, "x", {}, [3], [None], ["x"], [[]], [{}], []),
        [{"file": 3, "num_bytes": 3}],
        [{"file": None, "num_bytes": 3}],
        *(
            [{"file": name, "num_bytes": 1}]
            for name in ("", ".", "..", "../x", "/etc/hostname", "a/b", "x\0y", "~")
        ),
        *([{"file": "manifest.json", "num_bytes": x}] for x in (None, "3", -1, 0, [])),
    ],
)
def test_shards_of_a_manifest(cache, shards):
    config, folder = cache
    edit(folder, shards=shards)
    error_of(lambda: LatentSource(config, "train"))


def test_a_shard_outside_the_folder_is_not_read(cache):
    """A whole shard, with its right size, beside the folder."""
    config, folder = cache
    shard = next(folder.glob("*.array_record"))
    shutil.copy(shard, folder.parent / "moved.array_record")
    size = shard.stat().st_size
    edit(folder, shards=[{"file": "../moved.array_record", "num_bytes": size}])
    assert "is no manifest" in error_of(lambda: LatentSource(config, "train"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in SHARED_FIELDS
        for value in ("other", None, 7, [])
        if (field, value) != ("data.buckets", None)  # as this cache has it
    ],
)
def test_fields_of_a_manifest(cache, field, value):
    config, folder = cache
    edit(folder, **{field: value})
    assert field in error_of(lambda: LatentSource(config, "train"))


@pytest.mark.parametrize("names", [3, "ab", [1, 2], {}, {"a": 1}, [None], ["a"], None])
def test_classes_of_a_manifest(cache, names):
    config, folder = cache
    edit(folder, class_names=names)
    error_of(lambda: LatentSource(config, "train"))


@pytest.mark.parametrize(
    "fingerprint",
    [
        *(None, 3, "x", [], {}),
        {"data_set": "x", "num_images": 4},
        {"data_set": "x", "num_images": "4", "sha256": "0"},
        {"data_set": ["x"], "num_images": 4, "sha256": "0"},
        {"data_set": "x", "num_images": 4, "sha256": None},
    ],
)
def test_fingerprints_of_a_manifest(cache, fingerprint):
    config, folder = cache
    edit(folder, fingerprint=fingerprint)
    assert "fingerprint" in error_of(lambda: LatentSource(config, "train"))


@pytest.mark.parametrize("damage", ["emptied", "torn", "zeros", "missing"])
def test_shards(cache, damage):
    config, folder = cache
    shard = next(folder.glob("*.array_record"))
    data = shard.read_bytes()
    new = {"torn": data[:-9], "zeros": bytes(len(data))}.get(damage, b"")
    shard.write_bytes(new)
    if damage == "missing":
        shard.unlink()

    def read():
        next(train_batches(config, LatentSource(config, "train")))

    error_of(read)


def config_of(name, tmp_path, **data):
    values = {"name": name, "data_dir": str(tmp_path / "tfds"), "channels": 3}
    return from_dict({"data": values | {"num_classes": 0, "image_size": 16} | data})


@pytest.mark.parametrize(
    "kind", ["nothing", "file", "empty", "texts", "beside", "empty class", "hidden", "links"]
)
def test_folders_of_images(tmp_path, kind):
    folder = tmp_path / "images"
    if kind == "file":
        folder.write_text("x")
    elif kind != "nothing":
        folder.mkdir()
    if kind == "texts":
        (folder / "a.txt").write_text("x")
    elif kind in ("beside", "empty class"):
        (folder / "cats").mkdir()
        if kind == "beside":
            (folder / "0.png").write_bytes(b"x")
    elif kind == "hidden":
        (folder / ".0.png").write_bytes(b"x")
    elif kind == "links":
        (folder / "0.png").symlink_to(tmp_path / "nowhere.png")
    config = config_of(f"folder:{folder}", tmp_path)
    assert "config.data.name" in error_of(lambda: open_source(config, "train"))
    assert not (tmp_path / "tfds").exists()


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
IMAGES = {
    "empty": b"",
    "text": b"no image",
    "signature": PNG[:8],
    "header": PNG,
    "huge": PNG + b"\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00\x00\x00\x00\x00",
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "gif": b"GIF89a" + b"\xff" * 20,
    "pickle": b"\x80\x04N.",
    "zip": b"PK\x03\x04" + bytes(40),
}


def test_files_that_are_no_images(tmp_path):
    """Each is named when it is read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in IMAGES.items():
        (folder / f"{name}.png").write_bytes(data)
    config = config_of(f"folder:{folder}", tmp_path)
    source = open_source(config, "train")
    for index, name in enumerate(sorted(IMAGES)):
        line = error_of(lambda i=index: source.example(i, mirrored=False))
        assert f"{name}.png" in line


@pytest.mark.parametrize(
    "split", ["trian", "train[", "train[:", "train[x:]", "train[50%", "train+", "[]", "*"]
)
def test_splits(tiny_config, split):
    config = merge(tiny_config, {"data": {"split": split}})
    assert "split" in error_of(lambda: open_source(config, split))


@pytest.mark.parametrize(
    "name", ["lsun", "lsun/", "lsun/attic", "folder:", "nothing", "../x", "a b", "mnist:9"]
)
def test_names_of_data_sets(tmp_path, name):
    error_of(lambda: open_source(config_of(name, tmp_path), "train"))


@pytest.mark.parametrize("data", [b"", b"\0" * 8192, b"x" * 100])
def test_an_lmdb(tmp_path, data):
    for part in ("train", "val"):
        folder = tmp_path / f"tfds/downloads/manual/church_outdoor_{part}_lmdb"
        folder.mkdir(parents=True)
        (folder / "data.mdb").write_bytes(data)
    config = config_of("lsun/church_outdoor", tmp_path)
    assert "data.mdb" in error_of(lambda: open_source(config, "train"))
    assert not list((tmp_path / "tfds/lsun").rglob("dataset_info.json"))
