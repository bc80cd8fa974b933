"""Multiply-adds of a model, counted in its own program: every matrix product, loops multiplied.

The convention is the paper's and DiT's "Gflops": one multiply-add counts once; FLOPs are twice that.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from diffussm_jax.config import Config, grid_shape
from diffussm_jax.models import create_model


def dense_multiply_adds(config: Config) -> int:
    """Of one image's forward pass: all dense layers, without the state space operator, whose count depends on its algorithm."""

    def copy(u, poles, gains, skip, *, direction):
        return jnp.concatenate([u] * (2 if direction == "both" else 1), axis=-1)

    def forward(x, t, y):
        model = create_model(config, rngs=nnx.Rngs(0), apply_s4d=copy)
        return model(x, t, y if config.data.num_classes else None)

    x = jax.ShapeDtypeStruct((1, *grid_shape(config)), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return _count(jax.make_jaxpr(forward)(x, label, label).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
        rounds = equation.params.get("length", 1)
        for inner in _inner(equation.params.values()):
            total += rounds * _count(inner)
    return total


def _product(equation: Any) -> int:
    """Elements of the result times the length of the contraction."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    result = equation.outvars[0].aval.shape
    return math.prod(result) * math.prod(left[axis] for axis in contracted)


def _inner(values: Any) -> list[Any]:
    """The programs inside an operation's parameters."""
    found = []
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _inner(value)
    return found
