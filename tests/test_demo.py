"""The promises of `make demo`, `make one-step` and `make distill`, as they show them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.digits import measure, plot_loss


def draw_digits(config, workdir, *options):
    """Run as the demo is: eight fake devices would share two cores for minutes."""
    command = [sys.executable, "-m", "diffussm_jax.main", f"--config=configs/{config}"]
    command += [f"--workdir={workdir}", *options]
    sampling = ["--mode=sample", "--config.sample.num=500"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    for more in ([], [*sampling, "--config.sample.batch_size=500"]):
        subprocess.run([*command, *more], check=True, env=environment)
    with np.load(workdir / "samples" / "samples.npz") as samples:
        figures = measure(samples["arr_0"], samples["arr_1"])
    assert figures["agreement"] >= 0.95
    assert figures["variance"] >= 0.6
    assert figures["copies"] <= 0.01
    assert plot_loss(workdir).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("config", ["digits.py", "one_step.py"])
def test_the_demo_draws_digits(config, tmp_path, data_dir):
    draw_digits(config, tmp_path, f"--config.data.data_dir={data_dir}")


@pytest.mark.slow
@pytest.mark.nightly
def test_a_student_draws_digits_as_its_teacher_does(tmp_path, data_dir):
    data = f"--config.data.data_dir={data_dir}"
    draw_digits("distill_digits.py:teacher", tmp_path / "teacher", data)
    teacher = f"--config.training.teacher={tmp_path / 'teacher'}"
    draw_digits("distill_digits.py:s4d", tmp_path / "s4d", data, teacher)


def test_the_figures_can_fail():
    """Real digits, copies, class means and wrong classes are told apart."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    real = measure(images, digits.target)
    assert real["agreement"] > 0.98
    assert real["copies"] == 1
    assert real["variance"] == pytest.approx(1)
    means = np.stack([images[digits.target == y].mean(axis=0) for y in range(10)]).astype(np.uint8)
    averaged = measure(np.repeat(means, 5, axis=0), np.repeat(np.arange(10), 5))
    assert averaged["variance"] < 0.01
    assert averaged["copies"] == 0
    assert measure(images, (digits.target + 1) % 10)["agreement"] < 0.1
