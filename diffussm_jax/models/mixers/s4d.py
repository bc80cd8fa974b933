"""Bidirectional S4D along the rows of the grid of tokens, and along its columns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffussm_jax.config import ModelConfig
from diffussm_jax.config.sizes import pair, shortest
from diffussm_jax.models.layers import ModulateRows, linear
from diffussm_jax.models.s4d import S4D
from diffussm_jax.ops.s4d import DIRECTIONS, Operator
from diffussm_jax.shapes import Grid, Groups, Tokens


class S4DMixer(nnx.Module):
    """W_out (y * silu(z)) of the SSM's output y and a gate z; its input u and z are W_uz x.

    y is the sum over the orders in which the tokens are scanned, row after row and column after
    column, each with filters of its own; the directions lie side by side. One call of the operator
    computes all of them. With two directions the dense layers take as many multiply-adds as those
    of attention.
    """

    def __init__(self, config: ModelConfig, *, apply_s4d: Operator, rngs: nnx.Rngs):
        d, dtype = config.width, jnp.dtype(config.dtype)
        self.num_directions = len(DIRECTIONS[config.direction])
        self.has_rows = config.scan_orders in ("rows", "both")
        self.has_columns = config.scan_orders in ("columns", "both")
        num_orders = self.has_rows + self.has_columns
        self.uz = linear(d, 2 * d, dtype=dtype, rngs=rngs)
        along_rows, along_columns = pair(config.dt_rate)
        rates = (along_rows,) * self.has_rows + (along_columns,) * self.has_columns
        of_orders = dataclasses.replace(
            config, width=num_orders * d, dt_rate=shortest((rates[0], rates[-1]))
        )
        self.ssm = S4D(of_orders, apply_s4d=apply_s4d, rngs=rngs)
        self.out = linear(self.num_directions * d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: Groups, grid: Grid, modulate: ModulateRows) -> Groups:
        u, z = jnp.split(self.uz(modulate(x)), 2, axis=-1)
        gates = jnp.concatenate([jax.nn.silu(z)] * self.num_directions, axis=-1)
        return self.out(self.filter(u, grid) * gates)

    def filter(self, u: Tokens, grid: Grid) -> Float[Array, "b l e"]:
        """Compute y, the one thing here that moves information between tokens; it is linear.

        Directions and orders stay side by side in the last axis, as multiples of a TPU's lanes: in
        axes of their own, of length 2, they would be padded to its sublanes.
        """
        scanned = [u] * self.has_rows + [transpose(u, grid)] * self.has_columns
        with jax.named_scope("ssm"):
            y = self.ssm(jnp.concatenate(scanned, axis=-1))
        parts = jnp.split(y, self.num_directions * len(scanned), axis=-1)
        orders = [jnp.concatenate(parts[i :: len(scanned)], axis=-1) for i in range(len(scanned))]
        if self.has_columns:
            orders[-1] = transpose(orders[-1], grid[::-1])
        return functools.reduce(jnp.add, orders)


def transpose(x: Tokens, grid: Grid) -> Tokens:
    """The tokens of a grid column after column, from row after row."""
    b, l, d = x.shape
    return x.reshape(b, *grid, d).swapaxes(1, 2).reshape(b, l, d)
