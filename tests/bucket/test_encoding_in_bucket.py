"""`--mode=encode` into gs://: the bytes of the disk, whole or not at all, by several processes."""

import sys
import time

import pytest

from diffussm_jax.data.latents import LatentSource, cache_folder
from diffussm_jax.encode import encode
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.files.listing import list_files
from diffussm_jax.files.paths import as_path
from tests import jobs
from tests.conftest import merge

SPLIT = "train[:50]"


@pytest.fixture
def configs(tiny_config, tiny_autoencoder, tmp_path, bucket):
    """50 digits as RGB pictures in shards of 16, for a folder on the disk and for one at gs://.

    The autoencoder lies beside them.
    """
    remote = as_path(f"{bucket}/{tiny_autoencoder.name}")
    remote.replace_by(tiny_autoencoder)

    def config_of(folder, autoencoder):
        data = {"space": "latents", "channels": 3, "split": SPLIT, "eval_split": None}
        data |= {"shard_size": 16, "latents_dir": folder, "cache_dir": str(tmp_path / "cache")}
        vae = {"name": str(autoencoder), "factor": 2, "batch_size": 1}
        return merge(tiny_config, {"data": data, "autoencoder": vae})

    here = config_of(str(tmp_path / "latents"), tiny_autoencoder)
    return here, config_of(f"{bucket}/latents", remote)


def files(config):
    return {x.name: x.read_bytes() for x in cache_folder(config, SPLIT).iterdir()}


def test_the_cache_is_the_one_of_the_disk(configs):
    here, there = configs
    encode(here)
    encode(there)
    assert files(there) == files(here)
    source, other = LatentSource(there, SPLIT), LatentSource(here, SPLIT)
    assert source.example(49, mirrored=True)["mean"].tolist() == (
        other.example(49, mirrored=True)["mean"].tolist()
    )


def test_what_a_refusal_leaves_is_whole_and_the_next_start_goes_on(configs, storage):
    here, there = configs
    encode(here)
    expected = files(here)
    with storage.failing("GET .*moments-00002-of-00004", 403), pytest.raises(CommandEnd) as info:
        encode(there)
    assert "moments-00002-of-00004" in str(info.value)
    left = files(there)
    assert {"moments-00000-of-00004.array_record", "moments-00001-of-00004.array_record"} <= {*left}
    assert all(data == expected[name] for name, data in left.items() if name != "manifest.json")
    with pytest.raises(UserError, match="not finished"):
        LatentSource(there, SPLIT)
    encode(there)
    assert files(there) == expected


def test_a_shard_that_is_damaged_or_missing_is_encoded_again(configs):
    _, there = configs
    encode(there)
    expected = files(there)
    folder = cache_folder(there, SPLIT)
    path = folder / "moments-00001-of-00004.array_record"
    path.write_bytes(bytes(len(expected[path.name])))
    (folder / "moments-00003-of-00004.array_record").unlink()
    encode(there)
    assert files(there) == expected


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on(configs, storage, data_dir, tiny_autoencoder):
    here, there = configs
    encode(here)
    values = {
        "data.space": "latents",
        "data.channels": 3,
        "data.split": SPLIT,
        "data.eval_split": None,
        "data.shard_size": 4,
        "data.data_dir": data_dir,
        "data.latents_dir": there.data.latents_dir,
        "autoencoder.name": tiny_autoencoder,
        "autoencoder.factor": 2,
        "autoencoder.batch_size": 1,
    }
    words = [sys.executable, "-m", "diffussm_jax.main", "--config=configs/digits.py"]
    words += ["--mode=encode", *(f"--config.{name}={value}" for name, value in values.items())]
    folder = cache_folder(there, SPLIT)
    for num_shards in (2, 6):
        processes = jobs.start_all(words, 2)
        deadline = time.monotonic() + 400
        while sum(x.endswith(".array_record") for x in list_files(folder)) < num_shards:
            assert time.monotonic() < deadline
            assert all(x.poll() is None for x in processes), processes[0].communicate()[0]
            time.sleep(0.05)
        for process in processes:
            process.kill()
            process.communicate()
    for process in jobs.start_all(words, 2):
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert len(LatentSource(there, SPLIT)) == 50
    both = [LatentSource(x, SPLIT) for x in (here, there)]
    for index in range(50):
        first, second = (x.example(index, mirrored=False)["mean"].tolist() for x in both)
        assert first == second
