"""The operator on TPU: forward and, by `jax.custom_vjp`, backward, one kernel each.

The same algorithm as `ops/chunked.py`; see there for the equations. Only u and the parameters are kept
for the backward pass. HBM sees u, y, their gradients and some kilobytes a channel.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops.chunked import chunked
from diffussm_jax.ops.pallas_tpu import kernels, parameters
from diffussm_jax.ops.pallas_tpu.block import LANES, SUBLANES, Block
from diffussm_jax.ops.pallas_tpu.parameters import pack, unpack
from diffussm_jax.ops.pallas_tpu.tiling import Tiling, fit
from diffussm_jax.shapes import Gains, Poles, Skip, State, Tokens


def pallas_tpu(
    u: Tokens,
    poles: Poles,
    gains: Gains,
    skip: Skip,
    state: State | None,
    *,
    reverse: tuple[bool, ...],
    return_state: bool,
    tiling: Tiling,
) -> tuple[Float[Array, "b l r*d"], State | None]:
    """Run all directions at once.

    Where the chunks do not divide the length, the rest is padded with zeros, which change no output;
    but if states come in or go out, `chunked` does the rest, since padding would move the point where
    a backward pass begins.
    """
    tiling = fit(tiling, u, poles)
    length = u.shape[1]
    rest = length % tiling.chunk_size
    if rest and (state is not None or return_state):
        y, last = _with_rest(u, poles, gains, skip, state, reverse, rest, tiling)
        return y, last if return_state else None
    if state is None and return_state:
        state = _zero_state(u, poles)
    u = jnp.pad(u, ((0, 0), (0, -length % tiling.chunk_size), (0, 0)))
    y, last = _whole_chunks(u, poles, gains, skip, state, reverse, tiling)
    return y[:, :length], last if return_state else None


def _with_rest(u, poles, gains, skip, state, reverse, rest: int, tiling: Tiling):
    """Whole chunks here, the rest by `chunked`: last for a forward pass, first for a backward one."""
    whole, tail = u[:, :-rest], u[:, -rest:]
    state = _zero_state(u, poles) if state is None else state
    states: list = jnp.split(state, len(reverse))
    outputs: dict[int, Array] = {}

    def run_tail(backward: bool):
        for r in (r for r, reads_back in enumerate(reverse) if reads_back == backward):
            one = slice(r, r + 1)
            outputs[r], states[r] = chunked(
                tail,
                poles[one],
                gains[one],
                skip[one],
                states[r],
                reverse=(backward,),
                return_state=True,
            )

    run_tail(True)
    y = []
    if whole.shape[1]:
        head, last = _whole_chunks(
            whole, poles, gains, skip, jnp.concatenate(states), reverse, tiling
        )
        states, y = jnp.split(last, len(reverse)), [head]
    run_tail(False)
    y.append(jnp.concatenate([outputs[r] for r, _ in enumerate(reverse)], axis=-1))
    return jnp.concatenate(y, axis=1), jnp.concatenate(states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _whole_chunks(u, poles, gains, skip, state, reverse, tiling):
    return _forward(u, poles, gains, skip, state, reverse, tiling)[0]


def _forward(u, poles, gains, skip, state, reverse, tiling):
    block, inputs = _inputs(u, poles, gains, skip, state, reverse, tiling)
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
    return (_from_rows(y, u.shape, block), last), (u, poles, gains, skip, state)


def _backward(reverse, tiling, residuals, cotangents):
    u, poles, gains, skip, state = residuals
    dy, d_last = cotangents
    block, inputs = _inputs(u, poles, gains, skip, state, reverse, tiling)
    d_last = None if state is None else _to_lanes(d_last, block)
    found = _call(
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
    d_poles, d_gains, d_skip = parameters.gradients(
        poles, gains, found.kernel, found.sums, reverse, tiling.chunk_size
    )
    d_state = None if state is None else _from_lanes(found.state, state.shape)
    return _from_rows(found.u[None], u.shape, block), d_poles, d_gains, d_skip, d_state


_whole_chunks.defvjp(_forward, _backward)


def _inputs(u, poles, gains, skip, state, reverse, tiling) -> tuple[Block, kernels.Inputs]:
    """What both kernels read: u as rows, the powers of the poles, the convolution kernels, any state."""
    b, length, _ = u.shape
    t = tiling.chunk_size
    block = Block(
        num_channels=tiling.channels,
        num_chunks=length // t,
        batch=b + -b % SUBLANES,
        chunk_size=t,
        dtype=u.dtype,
        reverse=reverse,
        strided_roll=tiling.strided_roll,
    )
    kernel = parameters.convolution_kernel(poles, gains, skip, reverse, t)
    inputs = kernels.Inputs(
        _to_rows(u, block, 1)[0],
        _pad_to(parameters.powers(poles, gains, t), 0, tiling.channels),
        _pad_to(jnp.moveaxis(kernel, -1, 0), 0, tiling.channels),
        None if state is None else _to_lanes(state, block),
    )
    return block, inputs


def _call(kernel, operands, *, outputs, memory, block: Block, tiling: Tiling):
    """Run a kernel on blocks of channels: the leading axis of every array, or the second of y and dy."""
    num_channels, num_rows, t = operands[0].u.shape

    def spec(x):
        if x.shape[1:] == (num_channels, num_rows, t):
            size = (x.shape[0], block.num_channels, num_rows, t)
            return pl.BlockSpec(size, lambda i: (0, i, 0, 0))
        size = (block.num_channels, *x.shape[1:])
        return pl.BlockSpec(size, lambda i: (i, *(0,) * (len(size) - 1)))

    scratch = kernels.scratch(block, *memory)
    (found,) = pl.pallas_call(
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
    return found


def _like(x: Array | None) -> jax.ShapeDtypeStruct | None:
    return None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)


def _zero_state(u: Tokens, poles: Poles) -> State:
    r, d, n, _ = poles.shape
    return jnp.zeros((r, u.shape[0], d, n, 2), jnp.float32)


def _to_rows(x: Float[Array, "b l e"], block: Block, r: int):
    """[r d g*b t], channels and batch padded; e = r d."""
    b, t = x.shape[0], block.chunk_size
    x = jnp.transpose(x.reshape(b, block.num_chunks, t, -1), (3, 1, 0, 2))  # e g b t
    x = _pad_to(x, 2, SUBLANES).reshape(r, x.shape[0] // r, -1, t)
    return _pad_to(x, 1, block.num_channels)


def _from_rows(
    x: Float[Array, "r _ rows t"], shape: tuple[int, ...], block: Block
) -> Float[Array, "b l e"]:
    b, length, d = shape
    x = x[:, :d].reshape(-1, block.num_chunks, block.batch, block.chunk_size)
    return jnp.transpose(x[:, :, :b], (2, 1, 3, 0)).reshape(b, length, -1)


def _to_lanes(state: State, block: Block) -> Float32[Array, "_ _ 128"]:
    lanes = jnp.swapaxes(pack(state), 0, 1)
    return _pad_to(_pad_to(lanes, 0, block.num_channels), 1, SUBLANES)


def _from_lanes(lanes: Float32[Array, "_ _ 128"], shape: tuple[int, ...]) -> State:
    _, b, d, _, _ = shape
    return unpack(jnp.swapaxes(lanes[:d, :b], 0, 1), shape)


def _pad_to(x: Array, axis: int, multiple: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)
