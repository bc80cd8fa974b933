"""What the rest of the code knows of a process from images to noise: one interface.

A process draws times, mixes images with noise, and says what the network is told and what it
learns. `create_process` makes that of a config.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.shapes import Conditions, ImageKeys, Images, Labels, Times

# A network as a process calls it: of x_t, what it is told and the labels.
Denoiser = Callable[[Images, Conditions, Labels | None], Array]
# From a denoiser, the images' keys, their labels and the shape (h, w, c) to the images.
Sampler = Callable[[Denoiser, ImageKeys, Labels | None, tuple[int, int, int]], Images]

PerExample = Float[Array, " b"]


class NoisedBatch(NamedTuple):
    """The inputs of a loss.

    Attributes:
        x0: the clean images.
        t: the time of each, as the process draws them.
        eps: standard normal noise.
        y: the labels; None without classes.
        scale: the guidance scale that the network is told; None where it is told none.
    """

    x0: Images
    t: Times
    eps: Images
    y: Labels | None = None
    scale: PerExample | None = None


@runtime_checkable
class Process(Protocol):
    """A path from images to noise, and what a network learns of it.

    Conditions, [b] or [b k], are what the network is told of the times.
    """

    def draw_time(self, key: Key[Array, ""]) -> Array:
        """Draw the time of one example to train on."""
        ...

    def x_t(self, x0: Images, t: Times, eps: Images) -> Images:
        """Mix images and noise."""
        ...

    def conditions(self, t: Times) -> Conditions:
        """What the network is told in order to predict noise, velocity or image at time t."""
        ...

    def noise_level(self, conditions: Conditions) -> PerExample:
        """sigma / alpha where the network is told this: the noise in x_t / alpha."""
        ...

    def losses(
        self, model: Denoiser, batch: NoisedBatch, correction: Images | None = None
    ) -> dict[str, PerExample]:
        """The `loss` of each example, weighted, and its terms.

        Args:
            correction: what folded guidance adds to the target (`guidance.folded`).
        """
        ...


def draw_unit_time(config: DiffusionConfig, key: Key[Array, ""]) -> Float[Array, ""]:
    """Draw a time in [0, 1) by `time_sampling`.

    The logit-normal one is a sigmoid of N(time_mean, time_std^2); the shifted one moves uniform
    times towards noise (Esser et al. 2024, section 3.1 and eq. 23).
    """
    if config.time_sampling == "logit_normal":
        t = jax.nn.sigmoid(config.time_mean + config.time_std * jax.random.normal(key))
    else:
        t = jax.random.uniform(key)
    t = shifted(t, config.time_shift) if config.time_sampling == "shifted" else t
    return jnp.minimum(t, 1 - 2**-16)  # a sigmoid rounds to 1


def shifted(t: Array, shift: float) -> Array:
    """Times in [0, 1], moved towards 1 (noise) where shift > 1 (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def mean_square(x: Images) -> PerExample:
    """The mean square of each example."""
    return jnp.mean(jnp.square(x), axis=(1, 2, 3))


def adaptive(config: DiffusionConfig, error: PerExample) -> PerExample:
    """The loss of an error: error / sg(error + 1e-3)^p with weighting adaptive, else the error.

    No gradient goes through sg. The error is a mean over an example, where MeanFlow has the sum
    (arXiv 2505.13447, section 4.3): here 1e-3 means the same for images of any size.
    """
    if config.weighting != "adaptive":
        return error
    return error * jax.lax.stop_gradient(error + 1e-3) ** -config.adaptive_power
