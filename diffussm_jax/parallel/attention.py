"""Attention on a mesh: each device attends from its part of the tokens to all tokens.

XLA cannot partition a flash kernel, so each device runs it on its own images. Where the mesh splits
the tokens of an image, a device gathers keys and values, and needs no others' queries.
"""

import functools

import jax
from jax.sharding import Mesh, PartitionSpec

from diffussm_jax.ops.attention import Attend, AttentionImplementation, Keys, Queries, attention
from diffussm_jax.parallel.mesh import BATCH_AXES

IMAGES = PartitionSpec(BATCH_AXES)
TOKENS = PartitionSpec(BATCH_AXES, "sequence")


def shard_attention(mesh: Mesh, *, implementation: AttentionImplementation | None = None) -> Attend:
    """`ops.attention.attention` with images, and queries of an image, split over the mesh.

    Values and gradients are those on one device. The axes must divide the batch and the tokens
    (ValueError from `jax.shard_map` otherwise).
    """
    run = functools.partial(attention, implementation=implementation, device=mesh.devices.flat[0])

    def attend(q: Queries, k: Keys, v: Keys) -> Queries:
        # Pallas calls do not say how their outputs vary over the mesh.
        on_mesh = jax.shard_map(
            run, mesh=mesh, in_specs=(TOKENS, IMAGES, IMAGES), out_specs=TOKENS, check_vma=False
        )
        return on_mesh(q, k, v)

    return attend
