"""Latents at gs:// are those of the disk: by ranges, from the cache and in memory."""

import dataclasses
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from diffussm_jax.data import latents, pipeline
from diffussm_jax.data.latent_shards import write_shard
from diffussm_jax.data.latents import LatentSource, cache_folder, record_dtype
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.files import ranges
from diffussm_jax.files.paths import as_path
from tests.conftest import merge

NUM_SHARDS, SHARD_SIZE = 6, 40
NUM_IMAGES = NUM_SHARDS * SHARD_SIZE
DATA = {"name": "pictures", "space": "latents", "image_size": 32, "channels": 3, "num_classes": 3}


@pytest.fixture
def local(tiny_config, tmp_path):
    """A config and the cache of latents that it trains from, on the disk."""
    config = merge(tiny_config, {"data": DATA | {"latents_dir": str(tmp_path / "latents")}})
    dtype, folder = record_dtype(config), cache_folder(config, "train")
    folder.mkdir(parents=True)
    moments = np.random.default_rng(0).normal(size=(NUM_IMAGES, 2, 2, *config.grid))
    shards = []
    for number, part in enumerate(np.split(moments.astype(np.float16), NUM_SHARDS)):
        path = folder / f"moments-{number:05d}-of-{NUM_SHARDS:05d}.array_record"
        records = [[np.array((i % 3, *x), dtype).tobytes() for x in y] for i, y in enumerate(part)]
        write_shard(path, iter(records))
        shards.append(json.loads(path.with_suffix(".json").read_text()))
    fingerprint = {"data_set": "pictures/1.0.0", "num_images": NUM_IMAGES, "sha256": "0" * 64}
    facts = {"class_names": ["a", "b", "c"], "fingerprint": fingerprint, "shards": shards}
    manifest = latents.shared_fields(config, "train") | facts
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return config


@pytest.fixture
def remote(local, bucket, tmp_path):
    """The same in a bucket, which the local cache would hold three times."""
    root = Path(local.data.latents_dir)
    for path in root.rglob("*.*"):
        if path.is_file():
            as_path(f"{bucket}/latents/{path.relative_to(root)}").write_bytes(path.read_bytes())
    size = sum(x.stat().st_size for x in root.rglob("*.array_record"))
    return with_data(
        local,
        latents_dir=f"{bucket}/latents",
        cache_dir=str(tmp_path / "cache"),
        cache_gb=3 * size / 1e9,
    )


def with_data(config, **values):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **values))


def shards_of(config):
    return sorted(cache_folder(config, "train").glob("*.array_record"))


def batches_of(config, num, start=0):
    source = LatentSource(config, "train")
    return list(itertools.islice(pipeline.train_batches(config, source, start_step=start), num))


def assert_equal(some, others):
    for batch, other in zip(some, others, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, other[name])


def wait_for(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_local(source, num=NUM_SHARDS):
    wait_for(lambda: source.num_local == num)


@pytest.mark.parametrize("data", [{"cache_gb": 0.0}, {}, {"in_memory": True}])
def test_the_batches_are_those_of_the_disk(local, remote, data):
    assert_equal(batches_of(with_data(remote, **data), 40), batches_of(local, 40))
    assert_equal(batches_of(with_data(remote, **data), 3, start=17), batches_of(local, 3, start=17))


def test_once_all_files_are_in_the_cache_no_bytes_come_from_the_bucket(remote, local, storage):
    wait_until_local(LatentSource(remote, "train"))
    num = len(storage.lines)
    source = LatentSource(remote, "train")
    assert source.num_local == NUM_SHARDS
    for index in range(NUM_IMAGES):
        source.example(index, mirrored=bool(index % 2))
    assert not [x for x in storage.lines[num:] if "array_record" in x and "alt=media" in x]
    whole = {x.read_bytes() for x in shards_of(local)}
    assert {
        x.read_bytes() for x in Path(remote.data.cache_dir).iterdir() if x.suffix == ""
    } >= whole


@pytest.mark.parametrize("num_kept", [0, 1, 4])
def test_a_cache_smaller_than_the_data_stays_so(local, remote, num_kept, caplog):
    size = shards_of(local)[0].stat().st_size
    small = with_data(remote, cache_gb=(num_kept + 0.9) * size / 1e9)
    folder = Path(small.data.cache_dir)
    with caplog.at_level("INFO", "diffussm_jax"):
        source = LatentSource(small, "train")
        batches = pipeline.train_batches(small, source)
        expected = pipeline.train_batches(local, LatentSource(local, "train"))
        for batch, other in itertools.islice(zip(batches, expected), 80):
            assert_equal([batch], [other])
            assert sum(x.stat().st_size for x in folder.iterdir()) < (num_kept + 1) * size
        wait_for(lambda: f"{num_kept} of {NUM_SHARDS} files of" in caplog.text)
    assert source.num_local == num_kept


def test_a_cache_that_is_removed_is_filled_again(local, remote):
    source = LatentSource(remote, "train")
    wait_until_local(source)
    for path in Path(remote.data.cache_dir).iterdir():
        path.unlink()
    Path(remote.data.cache_dir).rmdir()
    expected = LatentSource(local, "train")
    for index in range(NUM_IMAGES):
        example = source.example(index, mirrored=False)
        assert_equal([example], [expected.example(index, mirrored=False)])
    wait_until_local(LatentSource(remote, "train"))


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_a_flipped_byte_is_found_and_its_object_named(remote, cache_gb, caplog):
    path = shards_of(remote)[2]
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(bytes(data))
    source = LatentSource(with_data(remote, cache_gb=cache_gb), "train")
    if cache_gb:
        wait_until_local(source, NUM_SHARDS - 1)
    bad = {}
    for index in range(2 * SHARD_SIZE, 3 * SHARD_SIZE):
        try:
            source.example(index, mirrored=False)
            source.example(index, mirrored=True)
        except latents.BadRecordError as error:
            bad[index] = str(error)
    [text] = bad.values()
    assert f"{path}: " in text
    assert "hash mismatch" in text


def test_a_file_that_the_disk_damages_is_read_from_the_bucket(local, remote, caplog):
    wait_until_local(LatentSource(remote, "train"))
    cached = [x for x in Path(remote.data.cache_dir).iterdir() if not x.name.startswith(".")]
    data = bytearray(cached[0].read_bytes())
    for position in range(20_000, len(data), 20_000):
        data[position] ^= 1
    cached[0].write_bytes(data)
    cached[1].write_bytes(bytes(cached[1].stat().st_size))
    source = LatentSource(remote, "train")
    assert source.num_local == NUM_SHARDS
    expected = LatentSource(local, "train")
    with caplog.at_level("INFO", "diffussm_jax"):
        for index in range(NUM_IMAGES):
            example = source.example(index, mirrored=False)
            assert_equal([example], [expected.example(index, mirrored=False)])
    assert "in the cache" in caplog.text


def test_a_shard_of_another_length_is_named(remote):
    path = shards_of(remote)[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{path} is missing or damaged"):
        LatentSource(remote, "train")
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing or damaged"):
        LatentSource(remote, "train")


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "denies access"), (401, "credentials"), (404, "is missing")]
)
def test_a_refusal_ends_in_a_line_that_names_the_object(remote, storage, status, reason):
    source = LatentSource(with_data(remote, cache_gb=0.0), "train")
    path = shards_of(remote)[0]
    with storage.failing(path.name, status), pytest.raises(CommandEnd) as info:
        source.example(0, mirrored=False)
    assert str(path) in str(info.value)
    assert reason in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(("status", "times"), [(503, 6), (429, 6), (None, 6)])
def test_busy_servers_and_cut_connections_are_asked_again(local, remote, storage, status, times):
    with storage.failing("array_record.*alt=media", status, times=times) as fault:
        assert_equal(batches_of(remote, 10), batches_of(local, 10))
    assert fault.num == times


def test_a_long_wait_is_a_line_of_the_log(local, remote, storage, monkeypatch, caplog):
    monkeypatch.setattr(ranges, "PATIENCE", 0.3)
    source = LatentSource(with_data(remote, cache_gb=0.0), "train")
    with storage.failing("array_record", 503, seconds=1.0), caplog.at_level("INFO", "diffussm_jax"):
        source.example(0, mirrored=False)
    assert f"{shards_of(remote)[0]}: no answer for 0 s; trying on" in caplog.text
