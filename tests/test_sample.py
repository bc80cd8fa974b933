"""The outputs of a job of samples: of that job alone, whatever was there before."""

import logging
import shutil

import numpy as np
import pytest

from diffussm_jax.sample import sample
from diffussm_jax.sampling.images import save_pngs
from diffussm_jax.workdir import ema_snapshots
from diffussm_jax.workdir.leftovers import drop_after
from diffussm_jax.workdir.ownership import claimed
from tests.conftest import merge
from tests.fuzz.one_line import error_of


@pytest.fixture
def run(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "run")


def test_the_images_of_an_earlier_job_are_not_among_those_of_a_later_one(run, tiny_config, caplog):
    def draw(**options):
        with caplog.at_level(logging.INFO, "diffussm_jax"):
            sample(merge(tiny_config, {"sample": options}), run)

    with claimed(run):  # while it trains
        draw(num=20, outputs=("png", "npz"))
    npz = (run / "samples" / "samples.npz").read_bytes()
    assert len(list((run / "samples" / "images").iterdir())) == 20
    (run / "samples" / ".images").mkdir()  # of a job that was killed
    (run / "samples" / ".images" / "000009.png").write_text("torn")
    draw(num=5, outputs=("png",), seed=3)
    names = sorted(path.name for path in (run / "samples" / "images").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    assert "samples.npz is still of an earlier job" in caplog.text
    assert (run / "samples" / "samples.npz").read_bytes() == npz
    caplog.clear()
    draw(num=5, outputs=("npz",), seed=3)
    assert "still of an earlier job" not in caplog.text
    assert (run / "samples" / "samples.npz").read_bytes() != npz


def test_a_picture_that_came_while_a_job_was_drawn_is_kept(tmp_path):
    def batches():
        yield np.zeros((2, 4, 4, 3), np.uint8)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "cat.png").write_text("x")

    line = error_of(lambda: save_pngs(batches(), tmp_path / "images"))
    assert "holds 'cat.png'" in line
    assert (tmp_path / "images" / "cat.png").read_text() == "x"


def test_what_was_written_after_the_step_that_a_run_goes_on_from_is_dropped(run):
    (run / "samples" / "step_9.txt").write_text("mine")
    assert {x.step for x in ema_snapshots.find_snapshots(run)} == {3, 6}
    drop_after(3, run)
    assert {x.step for x in ema_snapshots.find_snapshots(run)} == {3}
    assert [x.name for x in (run / "samples").iterdir()] == ["step_9.txt"]


def test_a_link_for_the_images_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "images"
    link.symlink_to(tmp_path / "disk")
    for num in (3, 2):
        save_pngs([np.zeros((num, 4, 4, 1), np.uint8)], link)
        assert len(list((tmp_path / "disk").iterdir())) == num
    assert link.is_symlink()
