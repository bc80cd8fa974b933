"""Power-function averages against the integrals that define them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import diffussm_jax
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors
from diffussm_jax.training import power_ema
from diffussm_jax.workdir.ema_snapshots import find_snapshots, reconstruct, save_snapshots

NUM_STEPS = 2000


def path(tau):
    """Parameters over time: a drift, a settling and two oscillations."""
    return np.stack([tau / 500, np.exp(-tau / 300), np.sin(tau / 90), np.cos(tau / 400)], axis=-1)


def integral(width: float, num_steps: int = NUM_STEPS):
    """The average of the path by definition: step weights are integrals of tau^gamma."""
    power = power_ema.exponent(width) + 1
    edges = (np.arange(num_steps + 1) / num_steps) ** power
    return np.diff(edges) @ path(np.arange(1, num_steps + 1))


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_the_papers(width, gamma):
    assert power_ema.exponent(width) == pytest.approx(gamma, abs=0.005)
    tau = (np.arange(100_000) + 0.5) / 100_000
    weight = tau ** power_ema.exponent(width)
    mean = np.average(tau, weights=weight)
    deviation = np.sqrt(np.average((tau - mean) ** 2, weights=weight))
    assert deviation == pytest.approx(width, rel=1e-4)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder with snapshots of two averages along the path, and the last of each average."""
    workdir, widths = tmp_path_factory.mktemp("ema"), (0.05, 0.1)
    averages = tuple({"w": jnp.full(4, 99.0)} for _ in widths)
    for step in range(1, NUM_STEPS + 1):
        params = {"w": jnp.asarray(path(step), jnp.float32)}
        averages = tuple(
            power_ema.update(average, params, jnp.asarray(step), width=width)
            for average, width in zip(averages, widths)
        )
        if step % 50 == 0:
            nested = [{"a": {"b": average["w"]}} for average in averages]
            save_snapshots(workdir, nested, widths, step=step)
    return workdir, dict(zip(widths, averages))


def test_an_update_follows_its_integral(followed):
    for width, average in followed[1].items():
        np.testing.assert_allclose(average["w"], integral(width), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [0.04, 0.075, 0.15, 0.2])
def test_any_length_comes_out_of_the_snapshots(followed, width):
    """Within 0.2 % of the range that the path has, of the direct average."""
    average = reconstruct(followed[0], width, step=NUM_STEPS)
    error = np.abs(average["a"]["b"] - integral(width))
    assert np.all(error < 0.002 * np.ptp(path(np.arange(NUM_STEPS)), axis=0)), error


def test_a_length_at_an_earlier_step_leaves_out_what_came_later(followed):
    average = reconstruct(followed[0], 0.15, step=1000)
    np.testing.assert_allclose(average["a"]["b"], integral(0.15, 1000), atol=0.005)


def test_inner_products_are_integrals():
    t, gamma = np.array([3.0, 5.0]), np.array([6.94, 2.0])
    products = power_ema.inner_products(t[:, None], gamma[:, None], t[None], gamma[None])
    tau = (np.arange(100_000) + 0.5) / 100_000 * 5
    weights = (gamma[:, None] + 1) * tau ** gamma[:, None] / t[:, None] ** (gamma[:, None] + 1)
    weights *= tau <= t[:, None]
    np.testing.assert_allclose(products, weights @ weights.T * 5 / 100_000, rtol=1e-3)


def test_a_run_keeps_snapshots_to_sample_from(trained):
    snapshots = [(x.step, x.width) for x in find_snapshots(trained)]
    assert snapshots == [(3, 0.05), (3, 0.1), (6, 0.05), (6, 0.1)]
    stored = read_tensors(find_snapshots(trained)[-1].path)
    model = diffussm_jax.load(trained, ema_length=0.1)
    for name, leaf in flatten_dict(model.params, sep=".").items():
        np.testing.assert_allclose(leaf, stored[name], atol=1e-6)
    assert len(model.sample(num=2)) == 2
    with pytest.raises(UserError, match=r"snapshots .* of steps \[3\]"):
        reconstruct(trained, 0.1, step=5)
