import numpy as np
import pytest

from diffussm_jax.diffusion.schedule import make_schedule, respace


def test_linear_is_ho_et_al():
    schedule = make_schedule("linear", 1000)
    np.testing.assert_allclose(schedule.betas[[0, -1]], [1e-4, 0.02])
    assert schedule.alpha_bar[-1] == pytest.approx(4.04e-5, rel=1e-2)


def test_cosine_is_nichol_and_dhariwal():
    schedule = make_schedule("cosine", 1000)
    time = (np.arange(1, 1000) / 1000 + 0.008) / 1.008  # the last beta is clipped
    expected = np.cos(time * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:-1], expected, rtol=1e-9)
    assert schedule.betas.max() == 0.999


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 50, 250, 1000])
def test_respacing_keeps_alpha_bar_and_the_ends(name, num_steps):
    full = make_schedule(name, 1000)
    few = respace(full, num_steps)
    assert few.num_steps == num_steps
    assert few.timesteps[-1] == 999
    assert num_steps == 1 or few.timesteps[0] == 0
    assert np.all(np.diff(few.timesteps) > 0)
    np.testing.assert_allclose(few.alpha_bar, full.alpha_bar[few.timesteps], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "sigma"])
def test_other_spacings_keep_distinct_steps(name, num_steps, spacing):
    full = make_schedule(name, 1000)
    few = respace(full, num_steps, spacing)
    assert few.num_steps == num_steps
    assert np.all(np.diff(few.timesteps) > 0)
    np.testing.assert_allclose(few.alpha_bar, full.alpha_bar[few.timesteps], rtol=1e-6)


def test_spacings_are_their_sources():
    full = make_schedule("linear", 1000)
    trailing = respace(full, 4, "trailing").timesteps
    np.testing.assert_array_equal(trailing, [250, 500, 749, 999])
    levels = full.noise_levels[respace(full, 10, "sigma").timesteps]
    i = np.arange(10)
    low, high = full.noise_levels[0] ** (1 / 7), 80 ** (1 / 7)
    np.testing.assert_allclose(levels, (low + i / 9 * (high - low)) ** 7, rtol=0.2)


def test_full_respacing_changes_nothing():
    full = make_schedule("linear", 1000)
    np.testing.assert_allclose(respace(full, 1000).betas, full.betas, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_respacing_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps must be in 1 .. 1000"):
        respace(make_schedule("linear", 1000), num_steps)
