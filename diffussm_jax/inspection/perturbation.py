"""A layer without its mixing, after arXiv 2504.12027: the map replaced by I, or by the uniform one.

For a linear operator M in general: what it gives to a constant, M 1, is kept, and multiplies each
token's own value (identity) or the mean over tokens (mean). Attention has M 1 = 1, so that this is
the paper's replacement of the map.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from diffussm_jax.config import Config
from diffussm_jax.diffusion import create_process
from diffussm_jax.diffusion.guidance import told
from diffussm_jax.diffusion.process import NoisedBatch, PerExample
from diffussm_jax.inspection.walk import Mixing, hooked
from diffussm_jax.models.backbone import Backbone, Stack, layers_of
from diffussm_jax.shapes import Condition, Conditions, Groups, Images, Labels

KINDS = ("none", "identity", "mean")


class Perturbed(nnx.Module):
    """A model with the mixing of one layer replaced, which is called as the model is.

    Args:
        layer: the number of the layer, from 0.
        kind: index in `KINDS`.
    """

    def __init__(self, model: Backbone, layer: int | Array, kind: int | Array):
        self.model, self.layer, self.kind = model, layer, kind

    def __call__(self, x_t: Images, t: Conditions, y: Labels | None = None) -> Array:
        return self.model.call_with(self._run, x_t, t, y)

    def prepare(self, height: int, width: int) -> "Perturbed":
        """The model for many calls: nothing is done once for all of them."""
        return self

    def _run(self, stack: Stack, x: Groups, c: Condition) -> Groups:
        def apply(carry: tuple[Groups, Array], block: nnx.Module) -> tuple[Any, None]:
            x, number = carry
            if self.model.gather is not None:
                block = self.model.gather(block)
            for part in layers_of(block):
                kind = jnp.where(number == self.layer, self.kind, 0)
                x = hooked(part, functools.partial(replaced, kind=kind))(x, c, stack.grid)
                number = number + 1
            return (x, number), None

        return jax.lax.scan(apply, (x, jnp.asarray(stack.first)), stack.blocks)[0][0]


def replaced(mixing: Mixing, kind: int | Array) -> Array:
    """The result of an operator, or of what replaces it."""

    def identity(moved: Array) -> Array:
        gain = mixing.apply(jnp.ones_like(moved))
        # The directions of an SSM lie side by side.
        return gain * jnp.tile(moved, gain.shape[-1] // moved.shape[-1])

    def mean(moved: Array) -> Array:
        average = moved.mean(axis=1, keepdims=True, dtype=jnp.float32).astype(moved.dtype)
        return identity(jnp.broadcast_to(average, moved.shape))

    return jax.lax.switch(kind, [mixing.apply, identity, mean], mixing.moved)


def make_error(
    config: Config, graphdef: nnx.GraphDef
) -> Callable[[dict, NoisedBatch, Array, Array], PerExample]:
    """Jit the squared error of each example's prediction, by (params, batch, layer, kind)."""
    process = create_process(config.diffusion)

    def error(params: dict, batch: NoisedBatch, layer: Array, kind: Array) -> PerExample:
        model = Perturbed(nnx.merge(graphdef, params), layer, kind)
        denoiser = model if batch.scale is None else told(model, batch.scale)
        return process.losses(denoiser, batch)["mse"]

    return jax.jit(error)
