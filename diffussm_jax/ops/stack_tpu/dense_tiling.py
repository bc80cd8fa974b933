"""Sizes of the dense kernels' calls, and whether they fit a chip."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu.block import LANES
from diffussm_jax.ops.stack_tpu.rows import PACKED_ROWS, PRODUCT_SIZE

MIB = 2**20
SPILLED = 3 * 4 * PRODUCT_SIZE  # float32 values of a block of rows


@dataclasses.dataclass(frozen=True)
class DenseTiling:
    """How the dense kernels are cut.

    Attributes:
        columns: groups of tokens in a grid step: at most so many, a multiple of 128.
        vmem_bytes: what a kernel may use of a core's VMEM.
        num_cores: cores of a chip that share the images of a call, where they can be shared evenly.
        unroll: write out the loops over rows. It saves 2 to 3 % of the cycles on v5e, and more on
            v6e, but takes many times as long to compile.
        fitted: columns of each kernel where `fit` chose them, since some hold more than others.
        interpret: run as plain JAX operations, anywhere; `pltpu.InterpretParams` looks for races.
    """

    columns: int = 512
    vmem_bytes: int = 100 * MIB
    num_cores: int = 1
    unroll: bool = False
    fitted: tuple[tuple[str, int], ...] = ()
    interpret: Any = False

    def columns_of(self, kernel: str) -> int:
        """The groups of tokens in a grid step of a kernel."""
        return dict(self.fitted).get(kernel, self.columns)


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Sizes of a block as the dense kernels see it.

    Attributes:
        d: width.
        j: groups of tokens of an image.
        m: tokens of a group.
        r: directions of the SSM.
        dtype: of the products and the activations.
        residual_dtype: of x.
    """

    d: int
    j: int
    m: int
    r: int
    dtype: Any = jnp.bfloat16
    residual_dtype: Any = jnp.float32


class _Kernel(NamedTuple):
    """What a kernel holds: kernels W in units of d^2, and activations in rows of d.

    `gradients` are W too, each as a float32 sum and rounded; `moving` is read or written, in two
    buffers, and `residual` counts the blocks of x, which have their own dtype; `scratch` is in
    bytes of a row's column.
    """

    weights: int
    gradients: int
    residual: int
    moving: int
    scratch: int


def vmem_bytes(shape: BlockShape, columns: int) -> dict[str, int]:
    """The VMEM of each kernel, with a twentieth to spare, and what the compiler spills."""
    m, r = shape.m, shape.r
    size = jnp.dtype(shape.dtype).itemsize
    gradient_size = 4 if size == 4 else 4 + size
    residual_size = jnp.dtype(shape.residual_dtype).itemsize
    kernels = {
        "up": _Kernel(1 + m, 0, 1, 1 + m, 2 * size),
        "down": _Kernel(2 * r + 8, 0, 2, m * r + 6, 5 * size),
        "gate_back": _Kernel(4, 4, 2, 7, 6 * size),
        "hidden_back": _Kernel(4, 4, 0, 6, 2 * size),
        "wide_back": _Kernel(2 * r, 2 * r, 0, 2 * m * r + 2, 0),
        "up_back": _Kernel(1 + m, 1 + m, 3, 2 + m, 3 * size + 4),
    }

    def total(kernel: _Kernel) -> int:
        held = (kernel.weights * size + kernel.gradients * gradient_size) * shape.d**2
        blocks = 2 * (kernel.residual * residual_size + kernel.moving * size) + kernel.scratch
        return int(1.05 * (held + blocks * shape.d * columns)) + SPILLED

    return {name: total(kernel) for name, kernel in kernels.items()}


def fit(tiling: DenseTiling, shape: BlockShape) -> DenseTiling:
    """Choose the columns of a grid step for a block of these sizes.

    Raises:
        ValueError: the kernels cannot run it.
    """
    if reason := refusal(tiling, shape):
        raise ValueError(f"the dense kernels of pallas_tpu cannot run: {reason}")
    fitted = _fitting_columns(tiling, shape)
    columns = min(fitted.values())
    return dataclasses.replace(tiling, columns=columns, fitted=tuple(fitted.items()))


def refusal(tiling: DenseTiling, shape: BlockShape) -> str | None:
    """The reason why the dense kernels cannot run a block of these sizes, or None if they can."""
    if shape.j % LANES:
        return f"{shape.j} groups of {shape.m} tokens are no multiple of {LANES}"
    unit = PACKED_ROWS if tiling.interpret else LANES
    if shape.d % unit:
        return f"a width of {shape.d} is no multiple of {unit}"
    if 2 * shape.d // shape.m % PACKED_ROWS:
        return f"2 * {shape.d} / {shape.m}, of width and m, is no multiple of {PACKED_ROWS}"
    if not all(_fitting_columns(tiling, shape).values()):
        needed = vmem_bytes(shape, LANES)
        name = max(needed, key=lambda kernel: needed[kernel])
        return (
            f"at width {shape.d} the kernel dense_{name} needs {needed[name] // MIB} MiB of VMEM, "
            f"{tiling.vmem_bytes // MIB} are there"
        )
    return None


def _fitting_columns(tiling: DenseTiling, shape: BlockShape) -> dict[str, int]:
    """For each kernel the most columns of a grid step that divide an image's and fit, or 0."""
    most = dict.fromkeys(vmem_bytes(shape, LANES), 0)
    for columns in range(LANES, tiling.columns + 1, LANES):
        if shape.j % columns == 0:
            needed = vmem_bytes(shape, columns)
            most |= {name: columns for name in most if needed[name] <= tiling.vmem_bytes}
    return most
