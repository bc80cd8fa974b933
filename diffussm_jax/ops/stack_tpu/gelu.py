"""GELU and its slope inside a kernel, by one transcendental function.

GELU's tanh form, 1/2 x (1 + tanh(z / 2)) with z = 2 sqrt(2 / pi) (x + 0.044715 x^3), is
    gelu(x)  = x s
    gelu'(x) = s + x s (1 - s) z'
where s = sigmoid(z).
"""

import math

import jax
from jaxtyping import Array, Float32

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu(x: Float32[Array, "*n"]) -> Float32[Array, "*n"]:
    """The same function as `jax.nn.gelu(x, approximate=True)`."""
    return x * jax.nn.sigmoid(x * (_LINEAR + _CUBIC * (x * x)))


def gelu_and_slope(x: Float32[Array, "*n"]) -> tuple[Float32[Array, "*n"], Float32[Array, "*n"]]:
    """gelu(x) and its derivative."""
    square = x * x
    s = jax.nn.sigmoid(x * (_LINEAR + _CUBIC * square))
    y = x * s
    return y, s + (y - y * s) * (_LINEAR + 3 * _CUBIC * square)
