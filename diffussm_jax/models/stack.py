"""The blocks of DiffuSSM as one operation with implementations: a loop over them, or kernels.

The loop is `Isotropic.run_blocks`, and the reference. `choose` finds what `ops.stack_tpu` has for
the chip, the model and the number of tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffussm_jax.config import ModelConfig, StackImplementation
from diffussm_jax.errors import UserError
from diffussm_jax.models.block import Block
from diffussm_jax.ops.s4d import DIRECTIONS
from diffussm_jax.ops.stack_tpu import choose as choose_tiling
from diffussm_jax.ops.stack_tpu.choose import StackShape, StackTiling, fit, stack_tiling_for
from diffussm_jax.ops.stack_tpu.parameters import dense_parameters, linear_parameters
from diffussm_jax.ops.stack_tpu.ssm import StackedSSM
from diffussm_jax.ops.stack_tpu.stack import (
    ForwardWeights,
    FusedStack,
    LayerParameters,
    prepare_stack,
    run_prepared,
    run_stack,
)
from diffussm_jax.shapes import Condition, Groups

Implementation = StackImplementation | StackTiling | None
Gather = Callable[[Block], Block]


@dataclasses.dataclass(frozen=True)
class TakeApart:
    """Takes the parameters of a block apart, as `FusedStack` reads them.

    Attributes:
        dtype: that the model rounds the parameters of its dense layers to.
        gather: makes of a device's part of a block the complete block.
    """

    dtype: Any
    gather: Gather | None = None

    def __call__(self, block: Block) -> LayerParameters:
        block = jax.tree_util.tree_map_with_path(self._rounded, block)
        if self.gather is not None:
            block = self.gather(block)
        return LayerParameters(
            dense_parameters(block),
            block.ssm.discretize(),
            linear_parameters(block.modulation.linear),
        )

    def _rounded(self, path: tuple, x: jax.Array) -> jax.Array:
        is_ssm = any(getattr(key, "key", getattr(key, "name", None)) == "ssm" for key in path)
        return x if is_ssm else x.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class FusedBlocks:
    """`isotropic.FusedBlocks` on one device, by `FusedStack`, whose activations are [b d j]."""

    stack: FusedStack

    def run(self, blocks: Block, x: Groups, c: Condition) -> Groups:
        """Apply the blocks; it has gradients, but no forward-mode derivative."""
        return _swapped(run_stack(self.stack, blocks, _swapped(x), c))

    def prepare(self, blocks: Block) -> ForwardWeights:
        """Form the SSMs' tables, and lay out the weights."""
        return prepare_stack(self.stack, blocks)

    def run_prepared(self, prepared: ForwardWeights, x: Groups, c: Condition) -> Groups:
        """The values of `run`, without gradients."""
        return _swapped(run_prepared(self.stack, prepared, _swapped(x), c))


def _swapped(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 1, 2)


def fuse(
    config: ModelConfig,
    implementation: Implementation,
    num_groups: int,
    *,
    gather: Gather | None = None,
    make_ssm: Callable[..., StackedSSM] = StackedSSM,
) -> FusedBlocks | None:
    """What runs all blocks on a device, or None for the loop; raises as `choose`.

    Args:
        num_groups: of an image's tokens, on the device.
        gather: makes of a device's part of a block the complete block.
        make_ssm: `StackedSSM`, or what stands for it where a mesh splits the tokens.
    """
    tiling = choose(config, implementation, num_groups)
    if tiling is None:
        return None
    dtype = jnp.dtype(config.dtype)
    ssm = make_ssm(config.m, DIRECTIONS[config.direction], tiling.ssm, gelu=True)
    take = TakeApart(dtype, gather)
    recompute = config.remat == "full"
    return FusedBlocks(FusedStack(take, ssm, tiling.dense, dtype, recompute=recompute))


def choose(
    config: ModelConfig, implementation: Implementation, num_groups: int
) -> StackTiling | None:
    """The kernels' sizes for a model and its groups of tokens on a device, or None for the loop.

    Args:
        implementation: "xla" is the loop; "pallas_tpu" the kernels, in the sizes for this machine's
            devices, and a `StackTiling` in its own; None the kernels on a TPU, if they can run.

    Raises:
        UserError: the kernels were asked for and cannot run.
    """
    device = jax.devices()[0]
    if implementation == "xla" or (implementation is None and device.platform != "tpu"):
        return None
    tiling = implementation
    if not isinstance(tiling, StackTiling):
        tiling = stack_tiling_for(device.device_kind)
    if reason := refusal(config, num_groups, tiling):
        if implementation is None:
            return None
        raise UserError(
            "config.model.stack_implementation is pallas_tpu, which cannot run this model: "
            f"{reason}; None takes xla where that is so"
        )
    return fit(tiling, _shape(config, num_groups))


def refusal(config: ModelConfig, num_groups: int, tiling: StackTiling) -> str | None:
    """The reason why the kernels cannot run a model, or None if they can."""
    if config.ssm_implementation not in (None, "pallas_tpu"):
        return f"config.model.ssm_implementation is {config.ssm_implementation}"
    is_real = not tiling.dense.interpret
    if config.dtype != "bfloat16" and is_real:
        return f"config.model.dtype is {config.dtype}; the kernels on a TPU take bfloat16"
    return choose_tiling.refusal(tiling, _shape(config, num_groups))


def _shape(config: ModelConfig, num_groups: int) -> StackShape:
    return StackShape(
        d=config.width,
        j=num_groups,
        m=config.m,
        reverse=DIRECTIONS[config.direction],
        num_pairs=config.state_size // 2,
        dtype=jnp.dtype(config.dtype),
        residual_dtype=jnp.promote_types(config.dtype, config.residual_dtype),
    )
