"""The multiply-adds of every matrix product and convolution in a model's own program.

One multiply-add counts once, as in the "Gflops" of the papers; FLOPs are twice that. Element-wise
work is not counted.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core
from jaxtyping import Array

from diffussm_jax.config import Config
from diffussm_jax.models import create_model
from diffussm_jax.ops.attention import attention
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.ops.s4d import s4d


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """The multiply-adds of one image's forward pass, by part.

    Attributes:
        dense: the dense layers of the blocks, those of the modulation included.
        convolutions: the depthwise convolutions.
        ssm: the state space operator in chunks, for a batch of one; its other forms take other
            products.
        attention: queries by keys, and weights by values.
        resampling: what leads from one level of a U, or of a pyramid, to another.
        embeddings: the embeddings of patches, step and class, and the head.
    """

    dense: int = 0
    convolutions: int = 0
    ssm: int = 0
    attention: int = 0
    resampling: int = 0
    embeddings: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(dataclasses.astuple(self))

    @property
    def without_ssm(self) -> int:
        """What the papers and MFU count, since the operator's share depends on its algorithm."""
        return self.total - self.ssm


def multiply_adds(config: Config) -> MultiplyAdds:
    """Count the multiply-adds of one image's forward pass, without running it."""

    def forward(x: Array, t: Array, y: Array) -> Array:
        operator = functools.partial(s4d, implementation="chunked")
        model = create_model(
            config,
            rngs=nnx.Rngs(0),
            apply_s4d=operator,
            attend=functools.partial(attention, implementation="xla"),
            convolve=convolution,
            fuse=lambda num_groups: None,
        )
        return model(x, t, y if config.data.num_classes else None)

    x = jax.ShapeDtypeStruct((1, *config.grid), jnp.float32)
    t = jax.ShapeDtypeStruct((1, len(config.conditions)), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    counts = collections.Counter[str]()
    parts = {field.name for field in dataclasses.fields(MultiplyAdds)}
    for scopes, count in _products(jax.make_jaxpr(forward)(x, t, label).jaxpr):
        counts[next((scope for scope in scopes if scope in parts), "dense")] += count
    return MultiplyAdds(**counts)


def _products(
    jaxpr: Any, scopes: tuple[str, ...] = (), rounds: int = 1
) -> Iterator[tuple[tuple[str, ...], int]]:
    """The named scopes and the multiply-adds of each product, loops multiplied."""
    for equation in jaxpr.eqns:
        inside = (*scopes, *str(equation.source_info.name_stack).split("/"))
        if equation.primitive.name == "dot_general":
            yield inside, rounds * _product(equation)
        if equation.primitive.name == "conv_general_dilated":
            yield inside, rounds * _convolution(equation)
        times = rounds * equation.params.get("length", 1)
        for inner in _inner(equation.params.values()):
            yield from _products(inner, inside, times)


def _product(equation: Any) -> int:
    """The elements of the result times the length of the contraction."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    result = equation.outvars[0].aval.shape
    return math.prod(result) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """The elements of the result times the taps of a kernel, those beyond the edges included."""
    kernel = equation.invars[1].aval.shape
    taps = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(equation.outvars[0].aval.shape) * taps


def _inner(values: Any) -> list[Any]:
    """The programs inside an operation's parameters."""
    programs = []
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            programs.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            programs.append(value)
        elif isinstance(value, (tuple, list)):
            programs += _inner(value)
    return programs
