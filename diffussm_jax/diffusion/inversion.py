"""From an image to the noise that a deterministic sampler draws it from, and what that allows.

DDIM inversion (Song et al. 2021, arXiv 2010.02502, section 4.3) takes the sampler's steps
backwards, with each prediction made at the step's wrong end. Here every step is reversed as what it
is, the solution x_t of step(x_t) = x_s, by fixed-point iterations as AIDI (Pan et al. 2023, arXiv
2309.04907) and ReNoise (Garibi et al. 2024, arXiv 2403.14602) do. The first of them is DDIM's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.diffusion.levels import Given, Level, Levels
from diffussm_jax.diffusion.samplers import State
from diffussm_jax.shapes import Images


def invert(levels: Levels, given: Given, x0: Images, *, iterations: int) -> Images:
    """The noise at the last level from which the sampler draws the images, or nearly.

    Args:
        levels: of a sampler whose step is a function of x_t alone, without noise.
        iterations: calls of a step for each step that is reversed.
    """

    def climb(x_s: Images, level: Level) -> tuple[Images, None]:
        def approach(x_t: Images, _: None) -> tuple[Images, None]:
            # x_t <- x_t + x_s - step(x_t), which ends where step(x_t) = x_s. It comes nearer along
            # every direction that a step scales by more than 0 and less than 2.
            below = levels.step(given, State(x_t, jnp.zeros_like(x_t)), level)
            return x_t + x_s - below.x_t, None

        return jax.lax.scan(approach, x_s, None, length=iterations)[0], None

    return jax.lax.scan(climb, x0, jnp.arange(1, levels.last + 1))[0]


def slerp(a: Images, b: Images, weight: Float[Array, " b"]) -> Images:
    """Noise on the great circle from a (weight 0) to b (weight 1) of each pair.

    A straight line's middle has too small a norm for noise.
    """
    axes = (1, 2, 3)
    cosine = jnp.sum(a * b, axes) / jnp.sqrt(jnp.sum(a * a, axes) * jnp.sum(b * b, axes))
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    c_a, c_b = (jnp.sin(w * angle) / jnp.sin(angle) for w in (1 - weight, weight))
    return c_a[:, None, None, None] * a + c_b[:, None, None, None] * b
