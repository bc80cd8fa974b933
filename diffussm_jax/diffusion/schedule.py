"""Noise schedules and respacing (Ho et al. 2020; Nichol & Dhariwal 2021; Karras et al. 2022)."""

import dataclasses
from typing import Literal

import numpy as np

ScheduleName = Literal["linear", "cosine"]
Spacing = Literal["even", "trailing", "sigma"]

MAX_NOISE_LEVEL = 80.0  # sigma_max of Karras et al. 2022, table 1


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Float64 tables over the steps of one diffusion process, derived from its betas.

    Attributes:
        betas: [steps] variance added by each step.
        timesteps: [steps] the index of each step in the full process, which is what the model gets.
    """

    betas: np.ndarray
    timesteps: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def alpha_bar(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @property
    def alpha_bar_prev(self) -> np.ndarray:
        """alpha_bar of the step before each; 1 before the first."""
        return np.append(1.0, self.alpha_bar[:-1])

    @property
    def noise_levels(self) -> np.ndarray:
        """sigma / alpha of each step: the standard deviation of the noise in x_t / alpha."""
        return np.sqrt(1 / self.alpha_bar - 1)

    @property
    def posterior_variance(self) -> np.ndarray:
        """beta-tilde_t, the variance of q(x_{t-1} | x_t, x0) (Ho et al., eq. 7)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @property
    def posterior_log_variance(self) -> np.ndarray:
        """log beta-tilde_t; step 0, whose variance is 0, takes step 1's (its beta if alone)."""
        variance = self.posterior_variance
        first = variance[1] if self.num_steps > 1 else self.betas[0]
        return np.log(np.append(first, variance[1:]))

    @property
    def posterior_mean_coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of x0 and x_t in the mean of q(x_{t-1} | x_t, x0) (Ho et al., eq. 7)."""
        scale = 1 / (1 - self.alpha_bar)
        c_x0 = np.sqrt(self.alpha_bar_prev) * self.betas * scale
        c_x = np.sqrt(1 - self.betas) * (1 - self.alpha_bar_prev) * scale
        return c_x0, c_x


def make_schedule(name: ScheduleName, num_steps: int) -> Schedule:
    """The full process of `num_steps` steps.

    "linear" is Ho et al.'s 1e-4 .. 0.02 at 1000 steps, scaled so that other counts end at the same
    noise; "cosine" is Nichol & Dhariwal's eq. 17 with betas clipped at 0.999.
    """
    if name == "linear":
        scale = 1000 / num_steps
        betas = np.linspace(scale * 1e-4, min(scale * 0.02, 0.999), num_steps)
    elif name == "cosine":
        time = np.arange(num_steps + 1) / num_steps
        alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    else:
        raise ValueError(f"schedule must be 'linear' or 'cosine', got {name!r}")
    return Schedule(betas, np.arange(num_steps))


def respace(schedule: Schedule, num_steps: int, spacing: Spacing = "even") -> Schedule:
    """Keep `num_steps` steps, with betas that leave alpha_bar at each of them unchanged.

    Args:
        spacing: "even" keeps the first step, the last, and steps at even distances between
            (Nichol & Dhariwal, section 4); "trailing" makes the way from the first kept step to the
            image as long as the others; "sigma" spaces the noise levels sigma / alpha from the
            first step's to 80 as Karras et al. 2022, eq. 5 with rho = 7.

    Raises:
        ValueError: `num_steps` is not in 1 .. the number of steps of the schedule.
    """
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(f"num_steps must be in 1 .. {schedule.num_steps}, got {num_steps}")
    kept = _kept_steps(schedule, num_steps, spacing)
    alpha_bar = schedule.alpha_bar[kept]
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return Schedule(betas, schedule.timesteps[kept])


def _kept_steps(schedule: Schedule, num_steps: int, spacing: Spacing) -> np.ndarray:
    """The rising indices of the kept steps."""
    last = schedule.num_steps - 1
    if spacing == "trailing" or num_steps == 1:
        # A single step must start from the noisiest one.
        places = np.linspace(0, last, num_steps + 1)[1:]
    elif spacing == "even":
        places = np.linspace(0, last, num_steps)
    else:
        levels = schedule.noise_levels
        low, high = levels[0], min(levels[-1], MAX_NOISE_LEVEL)
        roots = np.linspace(low ** (1 / 7), high ** (1 / 7), num_steps)
        places = np.interp(7 * np.log(roots), np.log(levels), np.arange(last + 1))
    # Where rounding puts two on one step, the later ones move up, and down again from the last.
    order = np.arange(num_steps)
    rising = np.maximum.accumulate(np.round(places).astype(int) - order) + order
    return np.minimum(rising, last - order[::-1])
