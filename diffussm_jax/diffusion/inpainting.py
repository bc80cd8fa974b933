"""Draw a part of an image anew, given the rest, with a model that knows nothing of masks.

RePaint (Lugmayr et al. 2022, arXiv 2201.09865). After each step the known part is replaced by the
image, noised to the level reached. That alone leaves the drawn part ignorant of what replaced the
other half of it; so every stretch of steps is gone several times, with noise added in between.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from diffussm_jax.diffusion.levels import Given, Levels
from diffussm_jax.diffusion.samplers import START, State, image_noise
from diffussm_jax.shapes import ImageKeys, Images

# Folded into an image's key for the moves of inpainting, and into a move's key for its noises, in
# place of a step.
MOVES, KNOWN, UP = 2**31 - 3, 2**31 - 4, 2**31 - 5

Mask = Bool[Array, "b h w _"]  # True is drawn anew; of all channels together, or of each


def inpaint(
    levels: Levels, given: Given, x0: Images, mask: Mask, *, jump_length: int, resamplings: int
) -> Images:
    """Draw what the mask covers; the rest of the result is that of x0.

    Args:
        jump_length: steps that are gone several times together.
        resamplings: how many times; 1 is plain replacement.
    """
    low, high = moves(levels.last, jump_length, resamplings)

    def move(state: State, now: tuple[Array, Array, Array]) -> tuple[State, None]:
        number, low, high = now
        keys = _move_keys(given.keys, number)
        up, known = (image_noise(keys, stream, x0.shape[1:]) for stream in (UP, KNOWN))
        x_t = levels.noised_up(state.x_t, low, high, up)
        x_s, estimate = levels.step(given._replace(keys=keys), State(x_t, state.x0), high)
        # x_s = mask * x_s + (1 - mask) * (alpha_s x0 + sigma_s eps)   (RePaint, eq. 8)
        return State(jnp.where(mask, x_s, levels.mix(x0, high - 1, known)), estimate), None

    x_last = image_noise(given.keys, START, x0.shape[1:])
    first = State(x_last, jnp.zeros_like(x_last))
    end, _ = jax.lax.scan(move, first, (jnp.arange(len(low)), jnp.asarray(low), jnp.asarray(high)))
    return end.x_t


def moves(
    num_levels: int, jump_length: int, resamplings: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The moves of RePaint: each adds noise from level `low` to `high`, then steps down one level.

    `low` is `high` but at the beginning of a repeated stretch.
    """
    low, high = [], []
    for top in range(num_levels, 0, -jump_length):
        bottom = max(top - jump_length, 0)
        for repetition in range(resamplings):
            steps = list(range(top, bottom, -1))
            high += steps
            low += [bottom if repetition else top, *steps[1:]]
    return np.asarray(low, np.int32), np.asarray(high, np.int32)


def _move_keys(keys: ImageKeys, number: Array) -> ImageKeys:
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, MOVES), number))(keys)
