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


# By `jax.Device.device_kind`. A core has 16 MiB of VMEM on v4, 64 on v5p and tpu7x, 128 on v5e and
# v6e; except on v5p, the compiler keeps some of it. A device is two cores on v4 and v5p, and one on
# the others.
_DENSE_TILINGS = {
    "TPU v4": DenseTiling(vmem_bytes=15 * MIB, num_cores=2),
    "TPU v5 lite": DenseTiling(),
    "TPU v5": DenseTiling(vmem_bytes=64 * MIB, num_cores=2),
    # Beside a matrix unit that is four times as fast, loops cost a tenth of a step.
    "TPU v6 lite": DenseTiling(unroll=True),
    "TPU7x": DenseTiling(vmem_bytes=61 * MIB),
}


def stack_tiling_for(device_kind: str) -> StackTiling:
    """The sizes for a kind of chip; what is no TPU interprets the kernels, slowly."""
    if not device_kind.startswith("TPU"):
        # With few channels a kernel is a short program, and XLA compiles it sooner.
        return StackTiling(DenseTiling(interpret=True), Tiling(interpret=True, channels=2))
    dense = _DENSE_TILINGS.get(device_kind, _DENSE_TILINGS["TPU v4"])
    return StackTiling(dense, tiling_for(device_kind))


def fit(tiling: StackTiling, shape: StackShape) -> StackTiling:
    """Fill in what the tiling leaves open, for a shape that `refusal` does not refuse."""
    return dataclasses.replace(tiling, dense=dense_tiling.fit(tiling.dense, shape.block))


def refusal(tiling: StackTiling, shape: StackShape) -> str | None:
    """The reason why the kernels cannot run a stack of this shape, or None if they can."""
    of_an_image = SSMShape(1, shape.m, shape.d, shape.j, shape.dtype, shape.reverse)
    return dense_tiling.refusal(tiling.dense, shape.block) or ssm_tiling.refusal(
        of_an_image, shape.num_pairs, tiling.ssm
    )
