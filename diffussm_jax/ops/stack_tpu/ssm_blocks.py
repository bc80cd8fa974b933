"""The blocks of the SSM kernels' operands: a grid step has some channels and a group of images."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32

from diffussm_jax.ops.pallas_tpu.block import LANES
from diffussm_jax.ops.stack_tpu.ssm_tables import PackedState, SSMSums, SSMTables
from diffussm_jax.ops.stack_tpu.ssm_tiling import Step


def in_layer(x: Any, step: Step) -> pl.BlockSpec:
    """The blocks of a stack `[L b ... d j]`: the prefetched number names the layer, mod L."""
    num_layers, _, *planes, _, j = x.shape
    size = (None, step.num_images, *planes, step.block.num_channels, j)

    def index(c: Any, i: Any, layer: Any) -> tuple:
        return jax.lax.rem(layer[0], num_layers), i, *_zeros(planes), c, 0

    return pl.BlockSpec(size, index)


def alone(x: Any, step: Step) -> pl.BlockSpec:
    """The blocks of an array `[b ... d j]`."""
    _, *planes, _, j = x.shape
    size = (step.num_images, *planes, step.block.num_channels, j)
    return pl.BlockSpec(size, lambda c, i, layer: (i, *_zeros(planes), c, 0))


def of_channels(tables: SSMTables, step: Step) -> Any:
    """The blocks of tables `[d rows lanes]`."""

    def spec(x: Array) -> pl.BlockSpec:
        size = (step.block.num_channels, *x.shape[1:])
        return pl.BlockSpec(size, lambda c, i, layer: (c, 0, 0))

    return jax.tree.map(spec, tables)


def of_images_and_channels(sums: SSMSums, step: Step) -> Any:
    """The blocks of sums `[_ d rows lanes]`, whose first axis counts the steps over the images."""

    def spec(x: Any) -> pl.BlockSpec:
        size = (None, step.block.num_channels, *x.shape[2:])
        return pl.BlockSpec(size, lambda c, i, layer: (i, c, 0, 0))

    return jax.tree.map(spec, sums)


def of_states(states: Any, step: Step) -> Any:
    """The blocks of states `[d _ b 128]`, whose second axis counts the steps over the images."""
    size = (step.block.num_channels, None, step.block.batch, LANES)
    return jax.tree.map(lambda _: pl.BlockSpec(size, lambda c, i, layer: (c, i, 0, 0)), states)


def by_step(states: PackedState | None, step: Step) -> Float32[Array, "d _ _ 128"] | None:
    """The states of each step's images, filled up to registers; None stays None."""
    if states is None:
        return None
    d, b, _ = states.shape
    states = states.reshape(d, b // step.num_images, step.num_images, LANES)
    return jnp.pad(states, ((0, 0), (0, 0), (0, step.block.batch - step.num_images), (0, 0)))


def _zeros(axes: list[int]) -> tuple[int, ...]:
    return (0,) * len(axes)
