"""What a page knows of sampling: for each number of steps, the numbers of each step.

On every path x_t = alpha_t x0 + sigma_t eps, a step leads from t to an earlier s with the same
estimates of x0 and eps:

    x0  = x0_from_x x_t - x0_from_prediction prediction      then clipped, if diffusion.clip_x0
    x0' = x0 + extrapolation (x0 - x0 of the step before)    0 but for DPM-Solver++
    x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0'

That is DDIM's step without noise (Song et al. 2021, eq. 12), DPM-Solver++(2M)'s (Lu et al. 2022b)
and Euler's on a flow, where alpha = 1 - t and sigma = t; for a mean flow the prediction is the
average velocity from t to s.
"""

import itertools
from typing import NamedTuple

import numpy as np

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.diffusion.flow import MIN_ALPHA, TIME_SCALE
from diffussm_jax.diffusion.flow_samplers import sampling_times
from diffussm_jax.diffusion.gaussian import make_gaussian
from diffussm_jax.diffusion.samplers import SPACINGS
from diffussm_jax.errors import UserError

SAMPLERS = ("ddim", "dpm_solver++", "euler")
# Besides sample.steps.
STEPS = (5, 10, 20, 50)
MEAN_FLOW_STEPS = (1, 2, 4)
# Fields of `sample` that a page has nothing for, which must be as by default.
UNSUPPORTED = ("image_size", "eta", "cfg_channels", "autoguidance", "wrap", "window_overlap")


class Step(NamedTuple):
    """The numbers of a step, and what the model is told at it.

    Attributes:
        told: without the scale of guidance.
        is_guided: whether guidance applies at this noise level.
    """

    told: list[float]
    x0_from_x: float
    x0_from_prediction: float
    extrapolation: float
    x_from_x: float
    x_from_x0: float
    is_guided: bool


class Place(NamedTuple):
    """Where on the path a step begins."""

    alpha: float
    sigma: float
    told: list[float]


def require_drawable(config: Config) -> None:
    """Raise UserError naming the first field with which a page cannot draw."""
    if config.data.space != "pixels":
        raise UserError(
            f"config.data.space = {config.data.space!r} must be 'pixels' for "
            "config.export.format = 'web': a page has no autoencoder"
        )
    if config.sample.sampler not in SAMPLERS:
        raise UserError(
            f"config.sample.sampler = {config.sample.sampler!r} must be one of "
            f"{', '.join(SAMPLERS)} for config.export.format = 'web': a page draws without noise "
            "between its steps, and with one call a step"
        )
    default = SampleConfig()
    for name in UNSUPPORTED:
        value, usual = getattr(config.sample, name), getattr(default, name)
        if value not in (usual, config.data.image_size if name == "image_size" else usual):
            raise UserError(
                f"config.sample.{name} = {value!r} must be {usual!r} for "
                "config.export.format = 'web': a page does without it"
            )


def step_counts(config: Config) -> list[int]:
    """The numbers of steps that a page offers, rising; `sample.steps` is one of them."""
    is_mean_flow = config.diffusion.process == "mean_flow"
    counts = {*(MEAN_FLOW_STEPS if is_mean_flow else STEPS), config.sample.steps}
    if config.diffusion.process == "gaussian":
        counts = {count for count in counts if count <= config.diffusion.num_steps}
    return sorted(counts)


def steps(config: Config, num_steps: int) -> list[Step]:
    """The steps from noise to image, in float64."""
    places = _places(config, num_steps)
    ends = [*places[1:], Place(1.0, 0.0, [])]
    extrapolations = _extrapolations(config, places)
    return [_step(config, *of) for of in zip(places, ends, extrapolations, strict=True)]


def _step(config: Config, here: Place, there: Place, extrapolation: float) -> Step:
    ratio = there.sigma / here.sigma
    low, high = config.sample.cfg_interval or (-np.inf, np.inf)
    level = here.sigma / here.alpha if here.alpha else np.inf
    return Step(
        here.told,
        *_x0_coefficients(config, here),
        extrapolation,
        ratio,
        there.alpha - here.alpha * ratio,
        bool(low < level <= high),
    )


def _x0_coefficients(config: Config, place: Place) -> tuple[float, float]:
    """The factors a and b of x0 = a x - b prediction (`diffusion.path.Point.x0`)."""
    alpha, sigma, _ = place
    is_gaussian = config.diffusion.process == "gaussian"
    match "v" if config.diffusion.process == "mean_flow" else config.diffusion.prediction:
        case "x0":
            return 0.0, -1.0
        case "v":
            return (alpha if is_gaussian else 1.0), sigma
        case _:
            alpha = alpha if is_gaussian else max(alpha, MIN_ALPHA)
            return 1 / alpha, sigma / alpha


def _places(config: Config, num_steps: int) -> list[Place]:
    if config.diffusion.process == "gaussian":
        spacing = SPACINGS[config.sample.sampler]
        schedule = make_gaussian(config.diffusion, num_steps=num_steps, spacing=spacing).schedule
        alphas, sigmas = np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar)
        rising = zip(alphas, sigmas, schedule.timesteps, strict=True)
        return [Place(float(a), float(s), [float(t)]) for a, s, t in rising][::-1]
    times = np.asarray(sampling_times(config.diffusion, num_steps), np.float64).tolist()
    return [Place(1 - t, t, _told(config, t, s)) for t, s in itertools.pairwise(times)]


def _told(config: Config, t: float, s: float) -> list[float]:
    """The conditions of a flow at t, and for a mean flow the interval to s too."""
    is_mean_flow = config.diffusion.process == "mean_flow"
    return [TIME_SCALE * t, TIME_SCALE * (t - s)] if is_mean_flow else [TIME_SCALE * t]


def _extrapolations(config: Config, places: list[Place]) -> list[float]:
    """1 / 2r of DPM-Solver++(2M), h / 2 h_before in log-SNR; the first and last step have none."""
    result = np.zeros(len(places))
    if config.sample.sampler == "dpm_solver++":
        h = np.diff([np.log(place.alpha / place.sigma) for place in places])
        result[1:-1] = h[1:] / (2 * h[:-1])
    return result.tolist()
