"""Flow matching on the straight path x_t = (1 - t) x0 + t eps, with t from 0 to 1.

Rectified flow (Liu et al. 2022, arXiv 2209.03003) and the linear interpolant of SiT (Ma et al.
2024, arXiv 2401.08740): the network learns the velocity v = eps - x0, whose mean given x_t moves
noise to images along dx / dt = v.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.path import Point
from diffussm_jax.diffusion.process import (
    Denoiser,
    NoisedBatch,
    PerExample,
    adaptive,
    draw_unit_time,
    mean_square,
)
from diffussm_jax.shapes import Images, Labels

# The network is told t times this. DDPM's 1000 would make the derivative by t, which a mean flow
# needs, a thousand times larger, and noise of rounding with it.
TIME_SCALE = 4.0
# x0 = (x - sigma eps) / alpha has no meaning in pure noise; alpha is at least this there.
MIN_ALPHA = 0.02


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow, and what the model's output means in it; a `Process`.

    Attributes:
        config: how predictions are read, times drawn and losses weighted.
    """

    config: DiffusionConfig

    def draw_time(self, key: Key[Array, ""]) -> Array:
        """Draw t in [0, 1)."""
        return draw_unit_time(self.config, key)

    def x_t(self, x0: Images, t: Float[Array, " b"], eps: Images) -> Images:
        """x_t = (1 - t) x0 + t eps."""
        return point(t).mix(x0, eps)

    def conditions(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
        """t, in the network's unit."""
        return TIME_SCALE * t

    def noise_level(self, conditions: Float[Array, " b"]) -> PerExample:
        """t / (1 - t)."""
        t = conditions / TIME_SCALE
        return t / (1 - t)

    def losses(
        self, model: Denoiser, batch: NoisedBatch, correction: Images | None = None
    ) -> dict[str, PerExample]:
        """The squared error of each example, `mse`, and the weighted `loss`."""
        here = point(batch.t)
        x_t = here.mix(batch.x0, batch.eps)
        target = here.target(self.config.prediction, batch.x0, batch.eps)
        prediction = model(x_t, self.conditions(batch.t), batch.y)
        mse = mean_square(prediction - (target if correction is None else target + correction))
        return {"loss": here.weight(self.config) * adaptive(self.config, mse), "mse": mse}

    def velocity(
        self,
        model: Denoiser,
        x_t: Images,
        t: Float[Array, " b"],
        s: Float[Array, " b"],
        y: Labels | None,
    ) -> Images:
        """Run the model once and read the velocity at t, to move to any s; t is above 0."""
        prediction = model(x_t, self.conditions(t), y)
        if self.config.prediction == "v" and not self.config.clip_x0:
            return prediction
        here = point(t)
        readable = here._replace(alpha=jnp.maximum(here.alpha, MIN_ALPHA))
        x0 = readable.x0(self.config.prediction, prediction, x_t)
        if self.config.clip_x0:
            x0 = jnp.clip(x0, -1, 1)
        return (x_t - x0) / here.sigma


def point(t: Float[Array, " b"]) -> Point:
    """The path at times t."""
    t = t[:, None, None, None]
    return Point(1 - t, t, -jnp.ones_like(t), jnp.ones_like(t))
