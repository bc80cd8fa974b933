"""`--mode=encode`: moments of every image and its mirror; kills, damage and other settings."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffussm_jax
from diffussm_jax import encode as encode_lib
from diffussm_jax.autoencoder.weights import load_autoencoder, save_autoencoder
from diffussm_jax.data.buckets import of_bucket
from diffussm_jax.data.faults import BadRecordError
from diffussm_jax.data.latents import LatentSource, cache_folder
from diffussm_jax.data.pipeline import open_source, train_batches
from diffussm_jax.data.sources import open_images
from diffussm_jax.encode import encode
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.workdir.data_facts import read_data_facts, write_data_facts
from diffussm_jax.workdir.lock import held
from examples.photos import random_autoencoder
from tests.conftest import merge
from tests.data.test_buckets import SHAPES, write_pictures
from tests.disks import disk_of
from tests.fuzz.one_line import error_of, files_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tiny_config, tiny_autoencoder, tmp_path):
    """50 digits as RGB pictures, in shards of 16 on the eight devices."""
    return with_data(tiny_config, tiny_autoencoder, tmp_path)


def with_data(tiny_config, weights, tmp_path, *, autoencoder=None, **data):
    values = {
        "space": "latents",
        "channels": 3,
        "split": "train[:50]",
        "eval_split": None,
        "shard_size": 16,
        "latents_dir": str(tmp_path / "latents"),
    }
    vae = {"name": str(weights), "factor": 2, "batch_size": 1} | (autoencoder or {})
    return merge(tiny_config, {"data": values | data, "autoencoder": vae})


def files(config):
    folder = cache_folder(config, config.data.split)
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_moments_are_the_autoencoders(config, tiny_autoencoder):
    encode(config)
    images, latents = open_images(config, "train[:50]"), LatentSource(config, "train[:50]")
    assert len(latents) == len(images) == 50
    shards = json.loads(files(config)["manifest.json"])["shards"]
    assert [shard["num_images"] for shard in shards] == [16, 16, 16, 2]
    model = load_autoencoder(tiny_autoencoder)
    apply = jax.jit(lambda x: model.encode(x))
    for mirrored in (False, True):
        examples = [latents.example(i, mirrored=mirrored) for i in range(50)]
        sides = [images.example(i, mirrored=mirrored) for i in range(50)]
        pixels = np.stack([x["image"] for x in sides]) / np.float32(127.5) - 1
        mean, std = apply(jnp.asarray(pixels))
        for name, expected in (("mean", mean), ("std", std)):
            cached = np.stack([e[name] for e in examples])
            np.testing.assert_allclose(cached, expected, rtol=2e-3, atol=2e-3)
        assert [e["label"] for e in examples] == [x["label"] for x in sides]


@pytest.mark.slow
def test_each_bucket_has_a_cache_of_its_own(tiny_config, tiny_autoencoder, tmp_path):
    write_pictures(tmp_path / "shapes")
    folder = {"name": f"folder:{tmp_path / 'shapes'}", "num_classes": 0, "split": "train"}
    data = folder | {"image_size": 8, "buckets": ("8x8", "4x16", "16x4")}
    config = with_data(tiny_config, tiny_autoencoder, tmp_path, **data)
    encode(config)
    source = open_source(config, "train")
    assert [len(run) for run in source.runs] == list(SHAPES.values())
    images = open_images(config, "train")
    for latents, pictures, sides in zip(source.sources, images.sources, SHAPES):
        mean = latents.example(1, mirrored=False)["mean"]
        assert mean.shape == (sides[0] // 2, sides[1] // 2, 4)
        alone = with_data(tiny_config, tiny_autoencoder, tmp_path, **folder, image_size=sides)
        with pytest.raises(UserError, match=r"holds latents of data.buckets = \['8x8', "):
            open_source(alone, "train")
        assert len(pictures) == len(latents)
    batches = itertools.islice(train_batches(config, source), 8)
    assert len({batch["mean"].shape for batch in batches}) == 3
    damaged = cache_folder(of_bucket(config, (4, 16)), "train") / "manifest.json"
    damaged.unlink()
    assert "4 x 16 trains on cached latents" in error_of(lambda: open_source(config, "train"))


def test_a_kill_between_shards_repeats_nothing_that_is_finished(config, monkeypatch):
    encode(config)
    undisturbed = files(config)
    folder = cache_folder(config, config.data.split)
    shards = sorted(folder.glob("*.array_record"))
    shards[1].unlink()  # killed before it was renamed
    (folder / f".{shards[1].name}").write_bytes(b"torn")
    damaged = bytearray(shards[2].read_bytes())
    damaged[3000] ^= 1
    shards[2].write_bytes(damaged)
    written = []
    write = encode_lib.write_shard
    monkeypatch.setattr(
        encode_lib, "write_shard", lambda path, *a: (written.append(path), write(path, *a))
    )
    encode(config)
    assert written == shards[1:3]
    assert files(config) == undisturbed


def test_a_notice_to_stop_keeps_the_finished_shards(config, monkeypatch):
    folder = Path(config.data.latents_dir)

    def signalled(self) -> bool:
        return bool(list(folder.rglob("moments-00001-of-00004.json")))

    with monkeypatch.context() as patch:
        patch.setattr(PreemptionNotice, "received", property(signalled))
        with pytest.raises(Preempted, match="finished shards are in"):
            encode(config)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("moments-*.json")}
    assert len(kept) == 2
    encode(config)
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in folder.rglob("*")}.items()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"autoencoder": {"dtype": "bfloat16"}}, "autoencoder.dtype = 'float32'"),
        ({"shard_size": 8}, "data.shard_size = 16, but now it is 8"),
    ],
)
def test_other_settings_do_not_mix_into_a_cache(
    tiny_config, tiny_autoencoder, config, tmp_path, changes, field
):
    encode(config)
    with pytest.raises(UserError, match=f"holds latents of {field}"):
        encode(with_data(tiny_config, tiny_autoencoder, tmp_path, **changes))


def test_other_weights_are_another_autoencoder(tiny_config, tiny_autoencoder, config, tmp_path):
    encode(config)
    other = tmp_path / "other" / tiny_autoencoder.name
    shape = load_autoencoder(tiny_autoencoder).config
    save_autoencoder(random_autoencoder(shape, seed=1), other)
    with pytest.raises(UserError, match="holds latents of autoencoder.sha256"):
        encode(with_data(tiny_config, other, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": {"factor": 4}}, "config.autoencoder.factor = 4, but .* has 2"),
        ({"autoencoder": {"scale": 1.0}}, "config.autoencoder.scale = 1.0, but .* has"),
        ({"channels": 1}, "config.data.channels = 1, but .* has 3"),
        ({"space": "pixels"}, "config.data.space must be 'latents'"),
        ({"latents_dir": "/dev/null/x"}, "config.data.latents_dir: .* cannot be wri"),
    ],
)
def test_what_does_not_fit_is_named(tiny_config, tiny_autoencoder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        encode(with_data(tiny_config, tiny_autoencoder, tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_disk_that_fills_while_latents_are_written(tmp_path):
    side = bytes(30_000)
    with disk_of(tmp_path / "latents", megabytes=1) as disk:
        path = disk / "moments-00000-of-00001.array_record"
        error = error_of(lambda: encode_lib.write_shard(path, iter([(side, side)] * 50)))
        assert not path.exists()
    assert "config.data.latents_dir: " in error
    assert "No space left on device" in error


def test_skipped_images_are_counted(tiny_config, tiny_autoencoder, tmp_path, monkeypatch):
    config = with_data(
        tiny_config, tiny_autoencoder, tmp_path, split="train[:130]", on_error="skip"
    )
    source = open_images(config, config.data.split)
    read = source.example

    def example(index, *, mirrored):
        if index == 20:
            raise BadRecordError("record 20 is empty")
        return read(index, mirrored=mirrored)

    monkeypatch.setattr(source, "example", example)
    monkeypatch.setattr(encode_lib, "open_images", lambda *_: source)
    encode(config)
    manifest = json.loads(files(config)["manifest.json"])
    assert (manifest["num_images"], manifest["num_skipped"]) == (129, 1)
    assert [s["num_images"] for s in manifest["shards"]] == [16, 15, *[16] * 6, 2]
    assert len(LatentSource(config, config.data.split)) == 129


def test_files_among_the_latents_are_not_taken_for_shards(config):
    folder = cache_folder(config, config.data.split)
    folder.mkdir(parents=True)
    (folder / ".DS_Store").touch()
    (folder / "moments-00000-of-00004.array_record").write_text("of who knows what")
    before = files_of(folder)
    line = error_of(lambda: encode(config))
    assert f"config.data.latents_dir: {folder} holds 'moments-00000-of-0" in line
    assert files_of(folder) == before


def test_of_two_encodings_into_one_folder_the_second_is_refused(config):
    folder = cache_folder(config, config.data.split)
    with held(folder, named="it"):
        line = error_of(lambda: encode(config))
    assert f"config.data.latents_dir: {folder} is in use by process " in line
    assert not folder.exists()


def begin_as(other, config):
    """Begin the caches of a config like the finished ones of another, as process 0 does."""
    for split in filter(None, (config.data.split, config.data.eval_split)):
        manifest = json.loads((cache_folder(other, split) / "manifest.json").read_text())
        folder = cache_folder(config, split)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest | {"shards": []}))


def test_two_processes_write_what_one_writes(tiny_config, tiny_autoencoder, tmp_path, monkeypatch):
    """Each in turn, as if it were the other's peer; the barrier is the order of the calls."""
    alone = with_data(tiny_config, tiny_autoencoder, tmp_path / "alone")
    encode(alone)
    shared = with_data(tiny_config, tiny_autoencoder, tmp_path / "shared")
    begin_as(alone, shared)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(encode_lib, "wait_for_all", lambda name: None)
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        encode(shared)
    assert files(shared) == files(alone)


@pytest.mark.slow
def test_training_and_sampling_from_latents(tiny_config, config, tmp_path):
    from diffussm_jax.train import train

    encode(config)
    train(config, tmp_path / "run")
    facts = read_data_facts(tmp_path / "run")
    assert facts.class_names == [str(digit) for digit in range(10)]
    model = diffussm_jax.load(tmp_path / "run")
    images = model.sample(num=3)
    assert (images.shape, images.dtype) == ((3, 8, 8, 3), np.uint8)
    shutil.rmtree(config.data.latents_dir)
    assert np.array_equal(model.sample(num=3), images)  # the cache is for training
    other = {"class_names": facts.class_names, "autoencoder.sha256": "0" * 64}
    write_data_facts(tmp_path / "run", other)
    with pytest.raises(UserError, match="not those that the latents .* encoded with"):
        diffussm_jax.load(tmp_path / "run")


@pytest.mark.slow
def test_ten_kills_leave_the_bytes_of_an_undisturbed_run(tiny_autoencoder, tmp_path, data_dir):
    """SIGKILL at random moments, from start-up on, and once more undisturbed."""
    command = [
        sys.executable,
        "-m",
        "diffussm_jax.main",
        "--config=configs/digits.py",
        "--mode=encode",
        "--config.data.space=latents",
        "--config.data.channels=3",
        f"--config.data.data_dir={data_dir}",
        "--config.data.shard_size=10",
        f"--config.autoencoder.name={tiny_autoencoder}",
        "--config.autoencoder.factor=2",
        "--config.autoencoder.batch_size=1",
    ]

    def start(folder):
        flag = f"--config.data.latents_dir={folder}"
        return subprocess.Popen([*command, flag], cwd=ROOT, stderr=subprocess.DEVNULL)

    def shards():
        return len(list((tmp_path / "killed").rglob("moments-*.array_record")))

    assert start(tmp_path / "undisturbed").wait() == 0
    rng, counts = random.Random(0), []
    for _ in range(10):
        target, process = shards() + rng.randint(0, 14), start(tmp_path / "killed")
        while process.poll() is None and shards() < target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(shards())
    assert start(tmp_path / "killed").wait() == 0
    expected, actual = (
        {
            path.relative_to(root): path.read_bytes()
            for path in root.rglob("*.*")
            if path.is_file() and not path.name.startswith(".")
        }
        for root in (tmp_path / "undisturbed", tmp_path / "killed")
    )
    assert actual == expected
    assert len(set(counts)) > 5, counts
    assert max(counts) < 180, "a run was not killed before its end"
