"""Denoisers of closed canvases and of larger ones, around models of which the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffussm_jax.config import DiffusionConfig, SampleConfig
from diffussm_jax.diffusion import create_sampler
from diffussm_jax.diffusion.canvas import rolled, window_places, windowed
from diffussm_jax.sampling.inputs import image_keys

WINDOW = (4, 4)
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 10, 2)), jnp.float32)
T, Y = jnp.full(3, 17), jnp.arange(3)


def by_image(x, t, y):
    """A linear model of each place that knows which image and which step it is called for."""
    return x * (1 + y)[:, None, None, None] + t.reshape(len(t), -1)[:, :1, None, None]


@pytest.mark.parametrize("closed", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_windows_of_a_model_of_single_places_are_that_model(overlap, closed):
    model = windowed(by_image, WINDOW, overlap=overlap, closed=closed)
    np.testing.assert_allclose(model(X, T, Y), by_image(X, T, Y), rtol=1e-6)
    two_conditions = jnp.stack([T, T + 1], axis=-1)
    expected = by_image(X, two_conditions, Y)
    np.testing.assert_allclose(model(X, two_conditions, Y), expected, rtol=1e-6)


def test_one_window_is_the_model_itself():
    def whole(x, t, y):
        return jnp.cumsum(x, axis=2)  # which is another for any other window

    np.testing.assert_array_equal(windowed(whole, (4, 10), overlap=0.5)(X, T, None), whole(X, T, Y))


def test_a_share_that_floats_cannot_hold_makes_no_more_windows():
    """10 (1 - 0.8) is 1.999... in floats."""
    assert len(window_places((10, 30), (10, 10), 0.8, (False, False))) == 11


@pytest.mark.parametrize(("size", "overlap"), [(10, 0.5), (11, 0.5), (9, 0.0), (4, 0.5)])
@pytest.mark.parametrize("is_closed", [False, True])
def test_windows_cover_all_places_and_overlap_by_at_least_the_share(size, overlap, is_closed):
    columns = [x for _, x in window_places((4, size), WINDOW, overlap, (False, is_closed))]
    assert set(np.concatenate(columns)) == set(range(size))
    following = columns[1:] + columns[:1] * is_closed
    for first, second in zip(columns, following):
        assert len(first) == 4
        assert len(set(first) & set(second)) >= 4 * overlap
    if not is_closed:
        assert columns[0][0] == 0
        assert columns[-1][-1] == size - 1


@pytest.mark.parametrize("closed", [(False, True), (True, False), (True, True)])
def test_a_rolled_model_has_its_edges_at_other_places_for_each_time(closed):
    edges = jnp.zeros(X.shape).at[:, 0].add(1).at[:, :, 0].add(2)
    model = jax.jit(rolled(lambda x, t, y: x + edges, closed))
    marks = [np.asarray(model(X, jnp.full(3, t), Y) - X).round() for t in range(20)]
    rows = {int(np.argmax(mark[0, :, 1, 0] % 2)) for mark in marks}
    columns = {int(np.argmax(mark[0, 1, :, 0] >= 2)) for mark in marks}
    assert (len(rows) > 2, len(columns) > 4) == closed
    for mark in marks:  # of all images at one place, whatever the batch
        np.testing.assert_array_equal(mark, np.broadcast_to(mark[:1], mark.shape))
    np.testing.assert_array_equal(model(X[1:2], T[:1], Y[1:2])[0], model(X, T, Y)[1])


SIDE = 8


def smooth_field(x_t, t, y):
    """The exact velocity of a flow to smooth Gaussian images of 8 x 8, which have edges."""
    places = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    variances, axes = np.linalg.eigh(np.exp(-((distances / 2.5) ** 1.5)))
    variances, axes = (jnp.asarray(x, jnp.float32) for x in (np.maximum(variances, 0), axes))
    t = t[:, None] / 4  # the model is told 4 t
    x = x_t.reshape(len(x_t), -1) @ axes
    x0 = (1 - t) * variances / ((1 - t) ** 2 * variances + t**2) * x
    return ((x - x0) / t @ axes.T).reshape(x_t.shape)


def draw(denoiser, shape, sampler):
    config = DiffusionConfig(process="flow", prediction="v", variance="none")
    run = create_sampler(config, SampleConfig(sampler=sampler, steps=20))
    keys = image_keys(0, jnp.arange(200))
    return np.asarray(jax.jit(lambda keys: run(denoiser, keys, None, shape=shape))(keys))


def seam_and_worst(x, axis):
    """The differences across the seam, and the largest inside, over their mean inside."""
    x = np.moveaxis(x, axis, 0)
    inside = np.abs(np.diff(x, axis=0)).mean(axis=(1, 2, 3))
    return np.abs(x[0] - x[-1]).mean() / inside.mean(), inside.max() / inside.mean()


@pytest.mark.parametrize("sampler", ["euler", pytest.param("heun", marks=pytest.mark.slow)])
def test_tiles_have_no_seam_and_no_trace_of_one(sampler):
    """Drawn with a model that knows images with edges alone."""
    plain = draw(smooth_field, (SIDE, SIDE, 1), sampler)
    tiles = draw(rolled(smooth_field, (True, True)), (SIDE, SIDE, 1), sampler)
    for axis in (1, 2):
        assert seam_and_worst(plain, axis)[0] > 2
        seam, worst = seam_and_worst(tiles, axis)
        assert seam < 1.15
        assert worst < 1.15
    assert tiles.std() > 0.9 * plain.std()


@pytest.mark.parametrize("is_closed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_strip_of_windows_shows_none_of_their_edges(is_closed):
    closed = (False, is_closed)
    model = windowed(smooth_field, (SIDE, SIDE), overlap=0.5, closed=closed)
    model = rolled(model, closed) if is_closed else model
    seam, worst = seam_and_worst(draw(model, (SIDE, 4 * SIDE, 1), "euler"), 2)
    apart, abrupt = seam_and_worst(
        draw(windowed(smooth_field, (SIDE, SIDE), overlap=0.0), (SIDE, 4 * SIDE, 1), "euler"), 2
    )
    assert worst < 1.25
    assert abrupt > 1.8
    assert (seam < 1.15) == is_closed
    assert apart > 1.7
