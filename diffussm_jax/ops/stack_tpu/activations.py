"""What the dense kernels do to the inputs and outputs of their products: GELU and modulation.

A column of a matrix is a group of tokens, so LayerNorm's sums run over rows, and shift and scale
are columns [d 1].
"""

import math

import jax
import jax.numpy as jnp

from diffussm_jax.ops.pallas_tpu.block import SUBLANES
from diffussm_jax.ops.stack_tpu.rows import VECTOR_SIZE, fold, fold_rows, over_rows

SHIFT, SCALE, GATE = range(3)  # the rows of a modulation
MEAN, INVERSE_DEVIATION = range(2)  # the rows of LayerNorm's statistics
EPSILON = 1e-6  # LayerNorm's

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu(x):
    """GELU's tanh form in float32, with one transcendental: (1 + tanh(z / 2)) / 2 = sigmoid(z).

    z(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3), as `jax.nn.gelu` has it.
    """
    x = x.astype(jnp.float32)
    return x * jax.nn.sigmoid(x * (_LINEAR + _CUBIC * (x * x)))


def gelu_and_slope(x):
    """gelu(x) = x s and its derivative s + x s (1 - s) z', with s = sigmoid(z)."""
    x = x.astype(jnp.float32)
    square = x * x
    s = jax.nn.sigmoid(x * (_LINEAR + _CUBIC * square))
    g = x * s
    return g, s + (g - g * s) * (_LINEAR + 3 * _CUBIC * square)


def times(a, b):
    """a b rounded to the dtype of a, from float32, since not all chips multiply bfloat16."""
    return (a.astype(jnp.float32) * b.astype(jnp.float32)).astype(a.dtype)


def measure(x, statistics, *, unroll: bool) -> None:
    """Write the mean and 1 / deviation of each column of x [d j] to `statistics` [2 j]."""

    def mean_of(value):
        zero = jnp.zeros((SUBLANES, x.shape[1]), jnp.float32)
        total = fold_rows(x, lambda rows, total: total + fold(value(rows)), zero, unroll=unroll)
        return jnp.sum(total, axis=0, keepdims=True) / x.shape[0]

    mean = mean_of(lambda rows: x[rows].astype(jnp.float32))
    variance = mean_of(lambda rows: jnp.square(x[rows].astype(jnp.float32) - mean))
    statistics[MEAN : MEAN + 1] = mean
    statistics[INVERSE_DEVIATION : INVERSE_DEVIATION + 1] = jax.lax.rsqrt(variance + EPSILON)


def normalized(x, statistics):
    """LayerNorm of some rows of x, in float32."""
    mean = statistics[MEAN : MEAN + 1]
    return (x.astype(jnp.float32) - mean) * statistics[INVERSE_DEVIATION : INVERSE_DEVIATION + 1]


def modulate(x, statistics, modulation, i, *, unroll: bool) -> None:
    """Write i = LayerNorm(x) (1 + scale) + shift, rounded where `models.layers.modulate` rounds."""

    def body(rows):
        n = normalized(x[rows], statistics).astype(i.dtype).astype(jnp.float32)
        factor = (1 + modulation[SCALE, rows]).astype(jnp.float32)
        i[rows] = (n * factor + modulation[SHIFT, rows].astype(jnp.float32)).astype(i.dtype)

    over_rows(x, body, most=VECTOR_SIZE, unroll=unroll)
