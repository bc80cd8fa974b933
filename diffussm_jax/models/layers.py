"""Layers shared by the backbones: embeddings of time, class and place, and adaptive modulation."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Num

from diffussm_jax.config.sizes import pair
from diffussm_jax.shapes import Condition, Conditions, Groups, Labels

SCALAR_FEATURES = 256  # ADM and DiT
EMBEDDING_INIT = nnx.initializers.normal(0.02)  # DiT


def linear(
    num_inputs: int, num_outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, zero: bool = False
) -> nnx.Linear:
    """Make a dense layer as DiT starts them.

    The kernel is Xavier-uniform or zero and the bias zero; parameters are float32.
    """
    init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
    return nnx.Linear(num_inputs, num_outputs, kernel_init=init, dtype=dtype, rngs=rngs)


class GroupedLinear(nnx.Module):
    """One dense layer for each member k of a group of m tokens: W_down[k] of the hourglass."""

    def __init__(
        self,
        num_members: int,
        num_inputs: int,
        num_outputs: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.xavier_uniform(in_axis=1, out_axis=2, batch_axis=0)
        self.kernel = nnx.Param(
            init(rngs.params(), (num_members, num_inputs, num_outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((num_members, num_outputs)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b l i"]) -> Float[Array, "b j m o"]:
        kernel = self.kernel[...].astype(self.dtype)
        bias = self.bias[...].astype(self.dtype)
        x = x.reshape(x.shape[0], -1, *kernel.shape[:2])  # b j m i
        return jnp.einsum("bjmi,mio->bjmo", x, kernel) + bias


class ScalarEmbedding(nnx.Module):
    """Sinusoidal features of a scalar, as the diffusion step, then a two-layer MLP."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, zero: bool = False):
        out_init = nnx.initializers.zeros if zero else EMBEDDING_INIT
        dense = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.hidden = dense(SCALAR_FEATURES, width, kernel_init=EMBEDDING_INIT)
        self.out = dense(width, width, kernel_init=out_init)
        self.dtype = dtype

    def __call__(self, values: Num[Array, " b"]) -> Condition:
        features = sinusoids(values.astype(jnp.float32), SCALAR_FEATURES).astype(self.dtype)
        return self.out(jax.nn.silu(self.hidden(features)))


class LabelEmbedding(nnx.Module):
    """One vector for each class and, in the last row, one for "no label".

    Classifier-free guidance uses the last one.
    """

    def __init__(self, num_classes: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.table = nnx.Param(EMBEDDING_INIT(rngs.params(), (num_classes + 1, width), jnp.float32))
        self.dtype = dtype

    def __call__(self, y: Labels) -> Condition:
        return self.table[...][y].astype(self.dtype)


class ConditionEmbeddings(nnx.Module):
    """The embeddings of what a model is told, each under its own name.

    Args:
        conditions: names of the embeddings of scalars, the first of which is the timestep's. The
            others start at zero, so that a model which is told less can be trained on.
        num_classes: 0 for an unconditional model, which has no embedding of labels.
    """

    def __init__(
        self,
        conditions: tuple[str, ...],
        num_classes: int,
        *,
        width: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        for name in conditions:
            is_first = name == conditions[0]
            setattr(self, name, ScalarEmbedding(width, dtype=dtype, rngs=rngs, zero=not is_first))
        if num_classes:
            self.label = LabelEmbedding(num_classes, width, dtype=dtype, rngs=rngs)
        self.conditions = conditions
        self.num_classes = num_classes

    def embed_conditions(self, t: Conditions, y: Labels | None) -> Condition:
        """The sum of the embeddings; y is None for an unconditional model."""
        columns = t.reshape(len(t), -1).T
        named = zip(self.conditions, columns, strict=True)
        c = sum(getattr(self, name)(column) for name, column in named)
        return c if y is None else c + self.label(y)


class Modulation(nnx.Module):
    """`num` vectors of the width of x from SiLU(c), zero at the start (adaLN, DiT section 3.2)."""

    def __init__(self, width: int, num: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = linear(width, num * width, dtype=dtype, rngs=rngs, zero=True)
        self.num = num

    def __call__(self, c: Condition) -> tuple[Float[Array, "b 1 d"], ...]:
        return tuple(jnp.split(self.linear(jax.nn.silu(c))[:, None], self.num, axis=-1))


# What applies a block's LayerNorm, shift and scale: `modulate` of the condition at hand.
ModulateRows = Callable[[Groups], Groups]


def modulate(x: Groups, shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]) -> Groups:
    """Apply LayerNorm without parameters, then x (1 + scale) + shift, in the dtype of these."""
    return layer_norm(x, dtype=shift.dtype) * (1 + scale) + shift


def layer_norm(x: Groups, *, dtype: jnp.dtype) -> Groups:
    """Normalise over the width, with float32 statistics whatever the dtypes of x and the result."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-6)).astype(dtype)


def sinusoids(
    positions: Float32[Array, " b"], num_features: int, *, max_period: float = 10_000
) -> Float32[Array, "b f"]:
    """cos and sin of each position at num_features / 2 frequencies from 1 to 1 / max_period."""
    half = num_features // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / half).astype(np.float32)
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos2d(
    height: int,
    width: int,
    group_size: int,
    num_features: int,
    *,
    scale: float | tuple[float, float] = 1.0,
) -> Float32[Array, "j d"]:
    """2-D position code at the centre of each group of `group_size` tokens in raster order.

    Half of the features hold the row, half the column. The code is a function of the grid and not a
    table, so a model runs at any resolution.

    Args:
        scale: multiplies positions, or (rows, columns). They are those of the tokens' centres
            counted from the edge, so that at 0.5 the codes of 2 h rows lie evenly among those of h.
    """
    along = [(np.arange(n) + 0.5) * x - 0.5 for n, x in zip((height, width), pair(scale))]
    rows, columns = np.meshgrid(*along, indexing="ij")
    centres = [axis.reshape(-1, group_size).mean(axis=1) for axis in (rows, columns)]
    codes = [sinusoids(jnp.asarray(axis, jnp.float32), num_features // 2) for axis in centres]
    return jnp.concatenate(codes, axis=-1)
