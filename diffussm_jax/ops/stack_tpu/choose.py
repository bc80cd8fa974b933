"""Whether a chip has the fused stack, and in which sizes."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu import Tiling, tiling_for
from diffussm_jax.ops.stack_tpu import dense_tiling, ssm_tiling
from diffussm_jax.ops.stack_tpu.dense_tiling import MIB, BlockShape, DenseTiling
from diffussm_jax.ops.stack_tpu.ssm_tiling import SSMShape


@dataclasses.dataclass(frozen=True)
class StackTiling:
    """How the kernels of a stack are cut; `stack_tiling_for` has the choices for chips."""

    dense: DenseTiling
    ssm: Tiling


@dataclasses.dataclass(frozen=True)
class StackShape:
    """Sizes of a stack.

    Attributes:
        d: width.
        j: groups of tokens of an image.
        m: tokens of a group.
        reverse: for each direction of the SSM, whether it reads from the end.
        num_pairs: conjugate pairs of poles of a channel and direction.
        dtype: of the products and the activations.
        residual_dtype: of x.
    """

    d: int
    j: int
    m: int
    reverse: tuple[bool, ...]
    num_pairs: int
    dtype: Any = jnp.bfloat16
    residual_dtype: Any = jnp.float32

    @property
    def block(self) -> BlockShape:
        """The sizes that the dense kernels go by."""
        r = len(self.reverse)
        return BlockShape(self.d, self.j, self.m, r, self.dtype, self.residual_dtype)


# VMEM for a dense kernel by `jax.Device.device_kind`; the compiler keeps some of a core's for
# itself.
_DENSE_VMEM = {
    "TPU v4": 15 * MIB,
    "TPU v5 lite": 88 * MIB,
    "TPU v5": 50 * MIB,
    "TPU v6 lite": 88 * MIB,
}


def stack_tiling_for(device_kind: str) -> StackTiling:
    """The sizes for a kind of chip; what is no TPU interprets the kernels, slowly."""
    if not device_kind.startswith("TPU"):
        # With few channels a kernel is a short program, and XLA compiles it sooner.
        return StackTiling(DenseTiling(interpret=True), Tiling(interpret=True, channels=2))
    vmem_bytes = _DENSE_VMEM.get(device_kind, _DENSE_VMEM["TPU v4"])
    return StackTiling(DenseTiling(vmem_bytes=vmem_bytes), tiling_for(device_kind))


def fit(tiling: StackTiling, shape: StackShape) -> StackTiling:
    """Fill in for a shape what the tiling leaves open.

    Raises:
        ValueError: the kernels cannot run it.
    """
    if reason := refusal(tiling, shape):
        raise ValueError(reason)
    return dataclasses.replace(tiling, dense=dense_tiling.fit(tiling.dense, shape.block))


def refusal(tiling: StackTiling, shape: StackShape) -> str | None:
    """The reason why the kernels cannot run a stack of this shape, or None if they can."""
    of_an_image = SSMShape(1, shape.m, shape.d, shape.j, shape.dtype, shape.reverse)
    return dense_tiling.refusal(tiling.dense, shape.block) or ssm_tiling.refusal(
        of_an_image, shape.num_pairs, tiling.ssm
    )
