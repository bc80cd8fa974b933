"""The fused stack of blocks on a mesh: each device runs the kernels on its part of the images.

A device has its part of each layer under `fsdp`, and gathers a layer, rounded, when it needs it.
JAX turns the gathering around in the backward pass: each device's gradients are rounded, then
summed and split.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from diffussm_jax.ops.stack_tpu.ssm import StackedSSM
from diffussm_jax.parallel.mesh import BATCH_AXES, split_rows
from diffussm_jax.parallel.sequence_ssm import SequenceSSM
from diffussm_jax.shapes import Condition, Groups

# From the groups of tokens on a device, and by name `gather` and `make_ssm`.
FuseOnDevice = Callable[..., Any]

EVERYWHERE = PartitionSpec()
IMAGES = PartitionSpec(BATCH_AXES)
ROWS = PartitionSpec(BATCH_AXES, "sequence")


def shard_stack(mesh: Mesh, fuse: FuseOnDevice) -> Callable[[int], "ShardedBlocks | None"]:
    """Put `fuse`, which is `models.stack.fuse` for a model, on a mesh.

    Values and gradients are those on one device. The axes must divide the batch and the rows
    (ValueError from `jax.shard_map` otherwise).
    """

    def fuse_on_mesh(num_groups: int) -> ShardedBlocks | None:
        num_parts = mesh.shape["sequence"]
        # Tables of the SSM cost the same whatever the batch, so what splits it splits them.
        splits_batch = [axis for axis in ("fsdp", "data") if mesh.shape[axis] > 1]
        channel_axis = next(iter(splits_batch), None)
        make_ssm: Callable[..., StackedSSM] = StackedSSM
        if num_parts > 1:
            make_ssm = functools.partial(SequenceSSM, axis="sequence")
        make_ssm = functools.partial(make_ssm, channel_axis=channel_axis)
        local = functools.partial(fuse, num_groups // num_parts, make_ssm=make_ssm)
        return None if local() is None else ShardedBlocks(mesh, local)

    return fuse_on_mesh


@dataclasses.dataclass(frozen=True)
class ShardedBlocks:
    """`models.isotropic.FusedBlocks` on a mesh.

    Attributes:
        local: makes the operation on a device, from what gathers a layer there.
    """

    mesh: Mesh
    local: Callable[..., Any]

    def run(self, blocks: Any, x: Groups, c: Condition) -> Groups:
        """Apply the blocks; the gradient of a block is split as its parameters are."""
        run = self.local(gather=self._gather(blocks)).run
        return self._on_mesh(run, (self._places(blocks), ROWS, IMAGES), ROWS)(blocks, x, c)

    def prepare(self, blocks: Any) -> Any:
        """Lay out complete blocks, on every device."""
        prepare = self.local(gather=self._gather(blocks)).prepare
        return self._on_mesh(prepare, (self._places(blocks),), EVERYWHERE)(blocks)

    def run_prepared(self, prepared: Any, x: Groups, c: Condition) -> Groups:
        """The values of `run`, without gradients."""
        run = self.local().run_prepared
        return self._on_mesh(run, (EVERYWHERE, ROWS, IMAGES), ROWS)(prepared, x, c)

    def _on_mesh(self, run: Callable, in_specs: Any, out_specs: Any) -> Callable:
        # Pallas calls do not say how their outputs vary over the mesh.
        return jax.shard_map(
            run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def _places(self, blocks: Any) -> Any:
        return jax.tree.map(lambda x: split_rows(x.shape, self.mesh), blocks)

    def _gather(self, blocks: Any) -> "GatherLayer":
        places = (split_rows(x.shape, self.mesh) for x in jax.tree.leaves(blocks))
        return GatherLayer(tuple(p.index("fsdp") if "fsdp" in p else None for p in places))


@dataclasses.dataclass(frozen=True)
class GatherLayer:
    """Makes of a device's part of a layer the complete layer, inside a `shard_map`.

    Attributes:
        axes: along which each of the blocks' arrays is split, or None.
    """

    axes: tuple[int | None, ...]

    def __call__(self, layer: Any) -> Any:
        parts, structure = jax.tree.flatten(layer)
        # The axis of the layers is gone.
        complete = [
            x if axis is None else jax.lax.all_gather(x, "fsdp", axis=axis - 1, tiled=True)
            for x, axis in zip(parts, self.axes, strict=True)
        ]
        return jax.tree.unflatten(structure, complete)
