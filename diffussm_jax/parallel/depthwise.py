"""Convolution on a mesh: each device convolves its own rows of its own images.

Left to XLA's partitioner, the gradient of a kernel gathers the images of all devices.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from diffussm_jax.ops.depthwise import Convolve, Convolved, Kernel, Rows, convolve, wrapped
from diffussm_jax.parallel.mesh import BATCH_AXES
from diffussm_jax.shapes import Closed, Images, ceil_div

ROWS = PartitionSpec(BATCH_AXES, "sequence")


def shard_convolve(mesh: Mesh, *, closed: Closed = (False, False)) -> Convolve:
    """`ops.depthwise.convolve` with images, and rows of an image, split over the mesh.

    Values and gradients are those on one device. The axes must divide the batch and the rows
    (ValueError from `jax.shard_map` otherwise).

    Args:
        closed: axes beyond whose edge x goes on at the other one; elsewhere it is zero there.
    """
    num_parts, platform = mesh.shape["sequence"], mesh.devices.flat[0].platform

    has_rows, has_columns = closed
    has_halo = num_parts > 1 or has_rows

    def run(x: Images, kernel: Kernel) -> Convolved:
        width, halo = x.shape[2], len(kernel) // 2
        if num_parts > 1:
            x = with_halo(x, halo, num_parts, is_ring=has_rows)
        elif has_rows:
            x = wrapped(x, halo, axis=1)
        if has_columns:
            x = wrapped(x, halo, axis=2)
        y = convolve(x, kernel, has_halo=has_halo, platform=platform)
        return y[:, :, halo : halo + width] if has_columns else y

    return jax.shard_map(run, mesh=mesh, in_specs=(ROWS, PartitionSpec()), out_specs=ROWS)


def with_halo(x: Images, halo: int, num_parts: int, *, is_ring: bool = False) -> Rows:
    """Put the next `halo` rows of other devices above and below those of this one.

    Beyond the edges of the image they are zero, or in a ring those of the other edge. Each round
    brings rows of a more distant device.
    """
    num_rows = x.shape[1]
    above, below = [], []
    for hops in range(1, ceil_div(halo, num_rows) + 1):
        count = min(num_rows, halo - (hops - 1) * num_rows)
        sources = range(num_parts if is_ring else num_parts - hops)
        down = [(part, (part + hops) % num_parts) for part in sources]
        above.append(_send(x[:, -count:], down))
        below.append(_send(x[:, :count], [(part, source) for source, part in down]))
    return jnp.concatenate([*reversed(above), x, *below], axis=1)


def _send(rows: Images, pairs: list[tuple[int, int]]) -> Images:
    """Give each device what its source in `pairs` has, or zeros."""
    return jax.lax.ppermute(rows, "sequence", pairs) if pairs else jnp.zeros_like(rows)
