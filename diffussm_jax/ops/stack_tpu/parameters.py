"""The parameters of a block's dense layers, and the layouts in which the kernels take them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Float32

from diffussm_jax.ops.pallas_tpu.block import LANES


class Linear(NamedTuple):
    """A dense layer, or its gradient. The fields are arrays, Refs or BlockSpecs.

    Attributes:
        kernel: [in out]; W_down has a leading axis m.
        bias: [out], in the forward kernels [out 128]; W_down's is [m out].
    """

    kernel: Any
    bias: Any


class TransposedLinear(Linear):
    """A dense layer whose kernel is [out in]."""


class DenseParameters(NamedTuple):
    """The dense layers of a block by the names of the paper, or their gradients."""

    w0: Linear  # d -> d
    w_up: Linear  # d -> m*d
    w_down: Linear  # r*d -> 2*d/m, one for each of the m tokens of a group
    w1: Linear  # d -> 2*d
    w2: Linear  # 2*d -> 2*d
    w3: Linear  # 2*d -> d


def dense_parameters(block: Any) -> DenseParameters:
    """Take the dense parameters of a block, whose layers have these names, a kernel and a bias."""
    return DenseParameters(
        *(linear_parameters(getattr(block, name)) for name in DenseParameters._fields)
    )


def linear_parameters(layer: Any) -> Linear:
    """Take the parameters of a dense layer that has a kernel and a bias."""
    return Linear(layer.kernel[...], layer.bias[...])


def forward_layout(parameters: DenseParameters, dtype: DTypeLike) -> DenseParameters:
    """Round the kernels, and lay out the biases, as `up` and `down` take them.

    Activations have their features in rows, so a layer is W^T x + b, b a column.
    """
    return DenseParameters(
        *(Linear(w.kernel.astype(dtype), lanes(w.bias, dtype)) for w in parameters)
    )


def transposed(parameters: DenseParameters) -> DenseParameters:
    """Transpose the kernels of `forward_layout`, which spares the matrix unit of doing so.

    It pays where the weights are read many times.
    """
    return DenseParameters(
        *(TransposedLinear(jnp.swapaxes(w.kernel, -1, -2), w.bias) for w in parameters)
    )


def backward_layout(parameters: DenseParameters, dtype: DTypeLike) -> DenseParameters:
    """Round everything to the dtype of the products, as the backward kernels take it."""
    return jax.tree.map(lambda x: x.astype(dtype), parameters)


def lanes(bias: Float[Array, "*_ o"], dtype: DTypeLike) -> Float32[Array, "*_ o 128"]:
    """Repeat a bias along the lanes, rounded to `dtype` as the model rounds it.

    A column [o 1] would take as much memory, and makes kernels slow to compile.
    """
    rounded = bias.astype(dtype).astype(jnp.float32)
    return jnp.broadcast_to(rounded[..., None], (*bias.shape, LANES))
