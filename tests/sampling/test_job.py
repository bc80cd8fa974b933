"""Sampling as a job: what a kill costs, and what is written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.sampling.images import save_npz, save_pngs
from diffussm_jax.sampling.job import draw_to

SHAPE = (4, 4, 3)


def draw_job(folder, *, num=22, range_size=4, facts="a", when_called=lambda num_calls: None):
    """A job whose image i is filled with i; also the starts of the ranges that it drew."""
    starts: list[int] = []

    def draw_range(indices):
        when_called(len(starts))
        starts.append(indices.start)
        values = np.arange(indices.start, indices.stop, dtype=np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), *SHAPE))

    samples = draw_to(
        folder,
        draw_range,
        num=num,
        range_size=range_size,
        facts={"weights": facts, "sizes": (4, 4)},
        labels=np.arange(num) % 10,
    )
    return samples, starts


def npz_of(samples, path) -> bytes:
    save_npz(samples.images(), path, shape=samples.shape, labels=samples.labels)
    return path.read_bytes()


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(tmp_path):
    def die_at_the_fourth(num_calls):
        if num_calls == 3:
            raise KeyboardInterrupt

    whole, _ = draw_job(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        draw_job(tmp_path / "parts", when_called=die_at_the_fourth)
    damaged = tmp_path / "parts" / "images-0000004-0000008.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed, starts = draw_job(tmp_path / "parts")
    assert starts == [4, 12, 16, 20]
    assert npz_of(whole, tmp_path / "a.npz") == npz_of(resumed, tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        expected = np.broadcast_to(np.arange(22)[:, None, None, None], (22, *SHAPE))
        np.testing.assert_array_equal(arrays["arr_0"], expected)
        np.testing.assert_array_equal(arrays["arr_1"], whole.labels)
        assert (arrays["arr_0"].dtype, arrays["arr_1"].dtype) == (np.uint8, np.int64)


def test_a_job_told_to_stop_ends_after_its_range(tmp_path):
    def stop_in_the_second(num_calls):
        if num_calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Preempted, match="the finished images are in"):
        draw_job(tmp_path, when_called=stop_in_the_second)
    _, starts = draw_job(tmp_path)
    assert starts == [8, 12, 16, 20]


def test_ranges_are_kept_for_the_same_job_alone(tmp_path):
    draw_job(tmp_path, num=8)
    samples, starts = draw_job(tmp_path)
    assert starts == [8, 12, 16, 20]
    images = np.concatenate([x for x, _ in samples])
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(22))
    _, starts = draw_job(tmp_path, facts="b")
    assert len(starts) == 6
    _, starts = draw_job(tmp_path, facts="b", range_size=20)
    assert not starts  # ranges keep the size that they have


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match="/proc/nowhere cannot be written"):
        draw_job(Path("/proc/nowhere"))


def test_pngs_hold_the_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    save_pngs([images[:3], images[3:]], tmp_path)
    read = [np.asarray(Image.open(tmp_path / f"{i:06d}.png")) for i in range(5)]
    np.testing.assert_array_equal(read, images)
    save_pngs([images[..., :1]], tmp_path)
    with Image.open(tmp_path / "000004.png") as grey:
        np.testing.assert_array_equal(grey, images[4, ..., 0])


@pytest.mark.slow
def test_the_command_survives_sigkill(trained, tmp_path):
    """Killed in a job and given again, the command leaves the npz of one never killed."""
    for path in trained.iterdir():
        if path.name != "samples":
            (tmp_path / path.name).symlink_to(path)
    command = [
        sys.executable,
        "-m",
        "diffussm_jax.main",
        "--config=configs/digits.py",
        f"--workdir={tmp_path}",
        "--mode=sample",
        "--config.model.depth=2",
        "--config.model.width=16",
        "--config.model.state_size=8",
        "--config.model.scan_unroll=1",
        "--config.diffusion.num_steps=20",
        "--config.diffusion.prediction=eps",
        "--config.diffusion.schedule=linear",
        "--config.diffusion.variance=learned_range",
        "--config.diffusion.clip_x0=False",
        "--config.sample.steps=20",
        "--config.sample.num=400",
        "--config.sample.batch_size=4",
        "--config.sample.outputs=npz",
    ]
    parts, npz = tmp_path / "samples" / "parts", tmp_path / "samples" / "samples.npz"
    job = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while len(list(parts.glob("images-*.npy"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert not npz.exists()
    num_finished = len(list(parts.glob("images-*.npy")))
    assert 5 <= num_finished < 100
    subprocess.run(command, check=True)
    resumed = npz.read_bytes()
    npz.unlink()
    parts.rename(tmp_path / "before")
    subprocess.run(command, check=True)
    assert npz.read_bytes() == resumed
