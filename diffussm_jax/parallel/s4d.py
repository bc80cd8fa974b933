"""The S4D operator on a mesh: split over the batch and, if an axis is given, over the sequence.

A part of a sequence needs from the others only the state that enters it: `[b d n]` complex numbers
a direction. Kernels that XLA cannot partition (Pallas) run on each device's part too.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32

from diffussm_jax.ops import pairs
from diffussm_jax.ops.circular import ClosedParts, circular_s4d, one_turn, periodic_state
from diffussm_jax.ops.s4d import (
    DIRECTIONS,
    Direction,
    Implementation,
    ImplementationName,
    Operator,
    as_implementation,
    s4d,
    s4d_with_state,
)
from diffussm_jax.shapes import SSM, State, Tokens

BatchAxis = str | tuple[str, ...] | None


def shard_s4d(
    mesh: Mesh,
    *,
    batch_axis: BatchAxis = "data",
    sequence_axis: str | None = None,
    implementation: ImplementationName | Implementation | None = None,
) -> Operator:
    """`ops.s4d.s4d` with u split over one or two axes of the mesh; the SSM is on every device.

    Values and gradients are those of the operator on one device. The axes must divide the batch and
    the sequence (ValueError from `jax.shard_map` otherwise).
    """
    run: Callable = s4d
    if sequence_axis is not None:
        run = functools.partial(_s4d_of_part, axis=sequence_axis)
    run = functools.partial(run, implementation=implementation)
    tokens = PartitionSpec(batch_axis, sequence_axis)
    states = PartitionSpec(None, batch_axis)
    return _on_mesh(run, mesh, tokens, states, out_specs=tokens)


def shard_s4d_with_state(
    mesh: Mesh,
    *,
    batch_axis: BatchAxis = "data",
    sequence_axis: str | None = None,
    implementation: ImplementationName | Implementation | None = None,
) -> Callable[..., tuple[Float[Array, "b l e"], State]]:
    """`ops.s4d.s4d_with_state` in the same way; the states are split over the batch alone."""
    run: Callable = s4d_with_state
    if sequence_axis is not None:
        run = functools.partial(_s4d_of_part_with_state, axis=sequence_axis)
    run = functools.partial(run, implementation=implementation)
    tokens = PartitionSpec(batch_axis, sequence_axis)
    states = PartitionSpec(None, batch_axis)
    return _on_mesh(run, mesh, tokens, states, out_specs=(tokens, states))


def shard_circular_s4d(
    mesh: Mesh,
    *,
    batch_axis: BatchAxis = "data",
    sequence_axis: str | None = None,
    implementation: ImplementationName | Implementation | None = None,
    closed: ClosedParts = (True,),
) -> Operator:
    """`circular_s4d` of the SSM's `one_turn`, in the same way, on the whole sequence."""
    run: Callable = circular_s4d
    if sequence_axis is not None:
        run = functools.partial(_circular_s4d_of_part, axis=sequence_axis)
    run = functools.partial(run, implementation=implementation, closed=closed)
    tokens = PartitionSpec(batch_axis, sequence_axis)

    def sharded(u: Tokens, ssm: SSM, *, direction: Direction = "both") -> Float[Array, "b l e"]:
        # Pallas calls do not say how their outputs vary over the mesh.
        on_mesh = jax.shard_map(
            functools.partial(run, direction=direction),
            mesh=mesh,
            in_specs=(tokens, PartitionSpec()),
            out_specs=tokens,
            check_vma=False,
        )
        return on_mesh(u, one_turn(ssm, u.shape[1], closed))

    return sharded


def _on_mesh(
    run: Callable, mesh: Mesh, tokens: PartitionSpec, states: PartitionSpec, *, out_specs: Any
) -> Callable[..., Any]:
    def sharded(
        u: Tokens, ssm: SSM, *, direction: Direction = "both", initial_state: State | None = None
    ) -> Any:
        def part(u: Tokens, ssm: SSM, initial_state: State | None) -> Any:
            return run(u, ssm, direction=direction, initial_state=initial_state)

        in_specs = tokens, PartitionSpec(), states
        # Pallas calls do not say how their outputs vary over the mesh.
        on_mesh = jax.shard_map(
            part, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return on_mesh(u, ssm, initial_state)

    return sharded


def _s4d_of_part(u: Tokens, ssm: SSM, **options: Any) -> Float[Array, "b l e"]:
    return _s4d_of_part_with_state(u, ssm, **options)[0]


def _s4d_of_part_with_state(
    u: Tokens,
    ssm: SSM,
    *,
    axis: str,
    direction: Direction,
    initial_state: State | None,
    implementation: ImplementationName | Implementation | None,
) -> tuple[Float[Array, "b l e"], State]:
    """This device's part: first the states that all parts add, then the outputs."""
    of_states = as_implementation(implementation).of_states
    added, decay = _added_by_all(u, ssm, axis, direction, of_states)
    if initial_state is None:
        initial_state = jnp.zeros_like(added[0])
    entering, last = _chain(added, initial_state, decay, DIRECTIONS[direction])
    y = s4d(
        u,
        ssm,
        direction=direction,
        initial_state=entering[jax.lax.axis_index(axis)],
        implementation=implementation,
    )
    return y, last


def _circular_s4d_of_part(
    u: Tokens,
    ssm: SSM,
    *,
    axis: str,
    direction: Direction,
    implementation: ImplementationName | Implementation | None,
    closed: ClosedParts,
) -> Float[Array, "b l e"]:
    """This device's part: all parts from zero give the state that enters the first one read."""
    of_states = as_implementation(implementation).of_states
    added, decay = _added_by_all(u, ssm, axis, direction, of_states)
    _, left = _chain(added, jnp.zeros_like(added[0]), decay, DIRECTIONS[direction])
    state = periodic_state(left, ssm, len(added) * u.shape[1], closed)
    entering, _ = _chain(added, state, decay, DIRECTIONS[direction])
    state = entering[jax.lax.axis_index(axis)]
    return s4d(u, ssm, direction=direction, initial_state=state, implementation=implementation)


def _added_by_all(
    u: Tokens, ssm: SSM, axis: str, direction: Direction, implementation: Implementation
) -> tuple[Float32[Array, "k r b d n 2"], pairs.Pair]:
    """The state that each part alone would leave, and how much of a state outlives a part."""
    _, added = s4d_with_state(u, ssm, direction=direction, implementation=implementation)
    decay = pairs.long_power(pairs.unpack(ssm.poles), u.shape[1])
    return jax.lax.all_gather(added, axis), decay


def _chain(
    added: Float32[Array, "k r b d n 2"],
    initial_state: State,
    decay: pairs.Pair,
    reverse: tuple[bool, ...],
) -> tuple[Float32[Array, "k r b d n 2"], State]:
    """The state that enters each of k parts, and the last: x <- exp(p l) x + added."""
    order = range(added.shape[0])
    decay = pairs.each(lambda part: part[:, None], decay)  # r 1 d n
    entering, last = [], []
    for r, backward in enumerate(reverse):
        decay_of_r = pairs.each(operator.itemgetter(r), decay)
        x = pairs.unpack(initial_state[r])
        before: dict[int, Array] = {}
        for k in reversed(order) if backward else order:
            before[k] = pairs.pack(x)
            x = pairs.add(pairs.multiply(decay_of_r, x), pairs.unpack(added[k, r]))
        entering.append(jnp.stack([before[k] for k in order]))
        last.append(pairs.pack(x))
    return jnp.stack(entering, axis=1), jnp.stack(last)
