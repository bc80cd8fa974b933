"""The S4D operator on a mesh: split over the batch, and over the sequence where an axis is given for it.

A part of a sequence needs of the others only the state that enters it: `[b d n]` complex numbers a
direction. Kernels that XLA cannot partition (Pallas) run on each device's part too.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from diffussm_jax.ops import pairs
from diffussm_jax.ops.s4d import DIRECTIONS, Choice, Implementation, Operator, s4d
from diffussm_jax.shapes import Gains, Poles, Skip, State, Tokens


def shard_s4d(
    mesh: Mesh,
    *,
    batch_axis: str | tuple[str, ...] | None = "data",
    sequence_axis: str | None = None,
    implementation: Implementation | Choice | None = None,
) -> Operator:
    """`ops.s4d.s4d` with u split over one or two axes of the mesh; the parameters are on every device.

    Values and gradients are those of the whole. The axes must divide the batch and the sequence
    (ValueError from `jax.shard_map` otherwise).
    """
    split = PartitionSpec(batch_axis, sequence_axis)
    of_state = PartitionSpec(None, batch_axis)
    run: Operator = s4d
    if sequence_axis is not None:
        run = functools.partial(_part_of_a_sequence, axis=sequence_axis)

    def apply(
        u: Tokens,
        poles: Poles,
        gains: Gains,
        skip: Skip,
        *,
        direction: str = "both",
        initial_state: State | None = None,
        return_state: bool = False,
    ):
        def part(u, poles, gains, skip, initial_state):
            return run(
                u,
                poles,
                gains,
                skip,
                direction=direction,
                initial_state=initial_state,
                return_state=return_state,
                implementation=implementation,
            )

        everywhere = PartitionSpec()
        # Pallas calls say nothing of how their outputs vary over the mesh.
        sharded = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(split, everywhere, everywhere, everywhere, of_state),
            out_specs=(split, of_state) if return_state else split,
            check_vma=False,
        )
        return sharded(u, poles, gains, skip, initial_state)

    return apply


def _part_of_a_sequence(
    u, poles, gains, skip, *, axis, direction, initial_state, return_state, implementation
) -> Float[Array, "b l e"] | tuple[Float[Array, "b l e"], State]:
    """This device's part: first the states that all parts leave behind, then the outputs."""
    operands = u, poles, gains, skip
    # Only the state is used, so XLA drops what makes the outputs.
    _, own = s4d(*operands, direction=direction, return_state=True, implementation="chunked")
    if initial_state is None:
        initial_state = jnp.zeros_like(own)
    entering, last = _chain(
        jax.lax.all_gather(own, axis),
        initial_state,
        pairs.long_power(pairs.unpack(poles), u.shape[1]),
        DIRECTIONS[direction],
    )
    y = s4d(
        *operands,
        direction=direction,
        initial_state=entering[jax.lax.axis_index(axis)],
        implementation=implementation,
    )
    return (y, last) if return_state else y  # type: ignore[return-value]  # y alone


def _chain(states, initial_state, decay, reverse):
    """The state that enters each part `[k r b d n 2]`, and the last: x <- exp(p l) x + state."""
    num_parts, decay = states.shape[0], pairs.each(lambda a: a[:, None], decay)
    entering, last = [], []
    for r, backward in enumerate(reverse):
        x, order = pairs.unpack(initial_state[r]), range(num_parts)
        found = {}
        for i in reversed(order) if backward else order:
            found[i] = pairs.pack(x)
            left = pairs.unpack(states[i, r])
            x = pairs.add(pairs.multiply((decay[0][r], decay[1][r]), x), left)
        entering.append(jnp.stack([found[i] for i in order]))
        last.append(pairs.pack(x))
    return jnp.stack(entering, axis=1), jnp.stack(last)
