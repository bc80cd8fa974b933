"""The demo's promise, as `make demo` shows it."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.digits import measure, plot_loss
from diffussm_jax import generate
from diffussm_jax.training.loop import train
from tests.test_config import load


@pytest.mark.slow
def test_the_demo_draws_digits(tmp_path, data_dir):
    config = load("digits")
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, data_dir=data_dir)
    )
    train(config, tmp_path)
    labels = np.arange(500) % 10
    figures = measure(generate.load(tmp_path).sample(num=500, batch_size=504), labels)
    assert figures["agreement"] >= 0.95
    assert figures["variance"] >= 0.6
    assert figures["copies"] <= 0.01
    assert plot_loss(tmp_path).stat().st_size > 10_000


def test_the_figures_can_fail():
    """Real digits, copies, class means and wrong classes are told apart."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    real = measure(images, digits.target)
    assert real["agreement"] > 0.98
    assert real["copies"] == 1
    assert real["variance"] == pytest.approx(1)
    means = np.stack(
        [images[digits.target == y].mean(axis=0) for y in range(10)]
    ).astype(np.uint8)
    averaged = measure(np.repeat(means, 5, axis=0), np.repeat(np.arange(10), 5))
    assert averaged["variance"] < 0.01
    assert averaged["copies"] == 0
    assert measure(images, (digits.target + 1) % 10)["agreement"] < 0.1
