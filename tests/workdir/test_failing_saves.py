"""Saves that fail, take too long, or find the disk full or locked."""

import contextlib
import gc
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict
from diffussm_jax.errors import CheckpointError
from diffussm_jax.workdir import integrity
from diffussm_jax.workdir.checkpoints import Checkpoints
from tests.conftest import merge
from tests.disks import disk_of
from tests.saved_runs import assert_equal, restored

# Orbax leaves coroutines of the failed save to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_coroutines():
    yield
    gc.collect()


def failing(seconds):
    def write_manifest(folder):
        time.sleep(seconds)
        raise OSError(28, "No space left on device")

    return write_manifest


@pytest.mark.parametrize(
    ("seconds", "timeout", "message"),
    [
        (0, 60, r"step 3 could not be written: .*No space left on device; there is none"),
        (60, 1, r"step 3 was not written within 1 s \(config.checkpoint.timeout\)"),
    ],
)
def test_a_failed_save_ends_the_run_soon(
    seconds, timeout, message, tiny_config, tmp_path, monkeypatch
):
    changes = {"checkpoint": {"every": 3, "timeout": timeout}, "training": {"num_steps": 10**6}}
    config = merge(tiny_config, changes)
    monkeypatch.setattr(integrity, "write_manifest", failing(seconds))
    with pytest.raises(CheckpointError, match=message):
        train_lib.train(config, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB of its own, for the checkpoints of a run."""
    with disk_of(tmp_path / "run" / "checkpoints", megabytes=16) as disk:
        yield disk


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", 0) as file:
        while file.write(bytes(512)):
            pass


def lock(disk: Path) -> None:
    """A disk with a file open for writing is busy: wait for Orbax to close its own."""
    remount = ["mount", "-o", "remount,ro", disk]
    for _ in range(100):
        if not subprocess.run(remount, capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    pytest.fail("the disk is still busy")


# Orbax leaves coroutines of the failed save to the garbage collector.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("spoil", "message"), [(fill, "No space left on device"), (lock, "Read-only file system")]
)
def test_a_disk_that_takes_no_more_is_named_and_the_last_checkpoint_is_good(
    spoil, message, small_disk, trained, tiny_config, monkeypatch
):
    config, workdir = from_dict(tiny_config), small_disk.parent
    shutil.copytree(trained, workdir, dirs_exist_ok=True)
    shutil.rmtree(small_disk / "6")
    with monkeypatch.context() as patch:
        save = Checkpoints.save

        def spoilt(self, *arguments):
            spoil(small_disk)
            save(self, *arguments)

        patch.setattr(Checkpoints, "save", spoilt)
        text = f"step 6 could not be written: .*{message}.*; the last whole one is of step 3"
        with pytest.raises(CheckpointError, match=text):
            train_lib.train(config, workdir)
    gc.collect()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    (small_disk / "filler").unlink(missing_ok=True)
    train_lib.train(config, workdir)
    assert_equal(restored(config, workdir).state, restored(config, trained).state)
