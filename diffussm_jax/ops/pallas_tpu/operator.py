"""The operator on TPU: forward and backward, one kernel each, which `ops/linear_in_u.py` joins.

The algorithm is that of `ops/chunked.py`; see there for the equations. Only u and the parameters
are kept for the backward pass. HBM sees u, y, their gradients and some kilobytes a channel.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.linear_in_u import Kernels, linear_in_u
from diffussm_jax.ops.pallas_tpu import kernels, parameters
from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES, ChannelBlock
from diffussm_jax.ops.pallas_tpu.parameters import pack, unpack
from diffussm_jax.ops.pallas_tpu.tiling import Tiling, fit
from diffussm_jax.shapes import SSM, State, Tokens


def pallas_tpu(
    u: Tokens,
    ssm: SSM,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
    tiling: Tiling,
) -> tuple[Float[Array, "b l e"], State | None]:
    """Run all directions at once; without `return_state` the second result is None.

    Where the chunks do not divide the length, the rest is padded with zeros, which change no
    output; but if states come in or go out, `chunked` does the rest, since padding would move the
    point where a backward pass begins.
    """
    tiling = fit(tiling, u, ssm)
    length = u.shape[1]
    rest = length % tiling.chunk_size
    if rest and (state is not None or return_state):
        y, last = _with_rest(u, ssm, state, reverse, rest, tiling)
        return y, last if return_state else None
    if state is None and return_state:
        state = _zero_state(u, ssm)
    u = jnp.pad(u, ((0, 0), (0, -length % tiling.chunk_size), (0, 0)))
    y, last = _whole_chunks(u, ssm, state, reverse, tiling)
    return y[:, :length], last if return_state else None


def _with_rest(u, ssm: SSM, state, reverse, rest: int, tiling: Tiling):
    """Run whole chunks here and the rest by `chunked`.

    The rest comes last in a forward pass and first in a backward one.
    """
    head, tail = u[:, :-rest], u[:, -rest:]
    state = _zero_state(u, ssm) if state is None else state
    states: list = jnp.split(state, len(reverse))
    y_tail: dict[int, Array] = {}

    def run_tail(backward: bool):
        for r in (r for r, reads_back in enumerate(reverse) if reads_back == backward):
            y_tail[r], states[r] = chunked(
                tail,
                jax.tree.map(operator.itemgetter(slice(r, r + 1)), ssm),
                states[r],
                reverse=(backward,),
                return_state=True,
            )

    run_tail(True)
    y = []
    if head.shape[1]:
        y_head, last = _whole_chunks(head, ssm, jnp.concatenate(states), reverse, tiling)
        states = jnp.split(last, len(reverse))
        y.append(y_head)
    run_tail(False)
    y.append(jnp.concatenate([y_tail[r] for r, _ in enumerate(reverse)], axis=-1))
    return jnp.concatenate(y, axis=1), jnp.concatenate(states)


def _whole_chunks(u, ssm: SSM, state, reverse, tiling: Tiling):
    return linear_in_u(make_kernels(reverse, tiling, state is not None), u, ssm, state)


def make_kernels(reverse: tuple[bool, ...], tiling: Tiling, has_state: bool) -> Kernels:
    """The kernels of these directions for whole chunks, without derivatives."""
    options = {"reverse": reverse, "tiling": tiling}
    return Kernels(
        run=functools.partial(_forward, **options),
        gradients=functools.partial(_backward, **options),
        plain=functools.partial(chunked, reverse=reverse, return_state=has_state),
    )


def _forward(u, ssm, state, *, reverse, tiling):
    block, inputs = _inputs(u, ssm, state, reverse, tiling)
    d, num_rows, t = inputs.u.shape
    y, last = _call(
        kernels.forward,
        (inputs,),
        outputs=kernels.Outputs(
            jax.ShapeDtypeStruct((len(reverse), d, num_rows, t), u.dtype), _like(inputs.state)
        ),
        memory=kernels.FORWARD_SCRATCH,
        block=block,
        tiling=tiling,
    )
    last = None if state is None else _from_lanes(last, state.shape)
    return _from_rows(y, u.shape, block), last


def _backward(operands, cotangents, *, reverse, tiling):
    u, ssm, state = operands
    dy, d_last = cotangents
    block, inputs = _inputs(u, ssm, state, reverse, tiling)
    d_last = None if state is None else _to_lanes(d_last, block)
    gradients = _call(
        kernels.backward,
        (inputs, kernels.Outputs(_to_rows(dy, block, len(reverse)), d_last)),
        outputs=kernels.Gradients(
            _like(inputs.u),
            _like(inputs.kernel),
            jax.ShapeDtypeStruct((inputs.u.shape[0], SUBLANES, LANES), jnp.float32),
            _like(inputs.state),
        ),
        memory=kernels.BACKWARD_SCRATCH,
        block=block,
        tiling=tiling,
    )
    d_ssm = parameters.gradients(ssm, gradients.kernel, gradients.sums, reverse, tiling.chunk_size)
    d_state = None if state is None else _from_lanes(gradients.state, state.shape)
    return _from_rows(gradients.u[None], u.shape, block), d_ssm, d_state


def _inputs(u, ssm: SSM, state, reverse, tiling: Tiling) -> tuple[ChannelBlock, kernels.Inputs]:
    """What both kernels read: u as rows, the powers of the poles, the kernels K, any state."""
    b, length, _ = u.shape
    t = tiling.chunk_size
    block = ChannelBlock(
        num_channels=tiling.channels,
        num_chunks=length // t,
        batch=b + -b % SUBLANES,
        chunk_size=t,
        dtype=u.dtype,
        reverse=reverse,
        strided_roll=tiling.strided_roll,
    )
    kernel = parameters.convolution_kernel(ssm, reverse, t)
    inputs = kernels.Inputs(
        _to_rows(u, block, 1)[0],
        _pad_to(parameters.powers(ssm, t), 0, tiling.channels),
        _pad_to(jnp.moveaxis(kernel, -1, 0), 0, tiling.channels),
        None if state is None else _to_lanes(state, block),
    )
    return block, inputs


def _call(
    kernel: Callable,
    operands: tuple,
    *,
    outputs: Any,
    memory: tuple[str, ...],
    block: ChannelBlock,
    tiling: Tiling,
) -> Any:
    """Run a kernel on blocks of channels, which are the second axis of y and dy, else the first."""
    num_channels, num_rows, t = operands[0].u.shape

    def spec(x):
        if x.shape[1:] == (num_channels, num_rows, t):
            size = (x.shape[0], block.num_channels, num_rows, t)
            return pl.BlockSpec(size, lambda i: (0, i, 0, 0))
        size = (block.num_channels, *x.shape[1:])
        return pl.BlockSpec(size, lambda i: (i, *(0,) * (len(size) - 1)))

    scratch = kernels.scratch(block, *memory)
    (results,) = pl.pallas_call(
        functools.partial(kernel, block=block, interleave=tiling.interleave),
        grid=(num_channels // block.num_channels,),
        in_specs=jax.tree.map(spec, operands),
        out_specs=(jax.tree.map(spec, outputs),),
        out_shape=(outputs,),
        scratch_shapes=[{name: pltpu.VMEM(x.shape, x.dtype) for name, x in scratch.items()}],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=tiling.vmem_bytes
        ),
        interpret=tiling.interpret,
        name=f"s4d_{kernel.__name__}",
    )(*operands)
    return results


def _like(x: Array | None) -> jax.ShapeDtypeStruct | None:
    return None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)


def _zero_state(u: Tokens, ssm: SSM) -> State:
    r, d, n, _ = ssm.poles.shape
    return jnp.zeros((r, u.shape[0], d, n, 2), jnp.float32)


def _to_rows(x: Float[Array, "b l e"], block: ChannelBlock, r: int):
    """Rows [r d g*b t] of tokens whose channels are e = r d; channels and batch are padded."""
    b, t = x.shape[0], block.chunk_size
    x = jnp.transpose(x.reshape(b, block.num_chunks, t, -1), (3, 1, 0, 2))  # e g b t
    x = _pad_to(x, 2, SUBLANES).reshape(r, x.shape[0] // r, -1, t)
    return _pad_to(x, 1, block.num_channels)


def _from_rows(
    x: Float[Array, "r _ rows t"], shape: tuple[int, ...], block: ChannelBlock
) -> Float[Array, "b l e"]:
    b, length, d = shape
    x = x[:, :d].reshape(-1, block.num_chunks, block.batch, block.chunk_size)
    return jnp.transpose(x[:, :, :b], (2, 1, 3, 0)).reshape(b, length, -1)


def _to_lanes(state: State, block: ChannelBlock) -> Float32[Array, "_ _ 128"]:
    lanes = jnp.swapaxes(pack(state), 0, 1)
    return _pad_to(_pad_to(lanes, 0, block.num_channels), 1, SUBLANES)


def _from_lanes(lanes: Float32[Array, "_ _ 128"], shape: tuple[int, ...]) -> State:
    _, b, d, _, _ = shape
    return unpack(jnp.swapaxes(lanes[:d, :b], 0, 1), shape)


def _pad_to(x: Array, axis: int, multiple: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)
