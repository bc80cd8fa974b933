"""The device mesh, and the one rule that says where arrays live on it.

| axis | splits |
|---|---|
| data | the batch |
| fsdp | the batch, and also parameters, EMA and optimizer state |
| sequence | the tokens of each example: rows of the image or latent |

Under fsdp a device gathers the parameters of a layer when it needs them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffussm_jax.config import Config, MeshConfig
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.settings import find_devices

AXES = ("data", "fsdp", "sequence")
BATCH_AXES = ("data", "fsdp")
# Splitting a smaller array saves too little memory to pay for a collective.
MIN_SPLIT_ELEMENTS = 2**14
LAYERS = "blocks"  # arrays under this name in a tree have a leading axis of layers
RESAMPLING = "resampling"  # those under this name lead from a level of a U to another


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Make the mesh of a config over the given devices.

    Each axis takes whole axes of a TPU slice's chips where such a choice exists, and else parts of
    them. Of several slices only the data axis crosses from one to another, because it has the least
    traffic.

    Args:
        config: the axes; by default all devices are along `data`.
        devices: by default those of all processes.

    Raises:
        UserError: the axes do not multiply to the number of devices, or there are none.
    """
    devices = find_devices() if devices is None else devices
    shape = axis_sizes(config or MeshConfig(), len(devices))
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    types = (AxisType.Auto,) * len(AXES)
    if num_slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)
    if shape[0] % num_slices:
        raise UserError(
            f"config.mesh.data must be a multiple of the {num_slices} slices, got {shape[0]}"
        )
    within, between = (shape[0] // num_slices, *shape[1:]), (num_slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def axis_sizes(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """The devices along each axis of a mesh, with -1 replaced.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1:
        raise UserError(f"config.mesh: one axis at most may be -1, got {dict(zip(AXES, sizes))}")
    known = math.prod(size for size in sizes if size != -1)
    filled = [num_devices // known if size == -1 else size for size in sizes]
    if math.prod(filled) != num_devices:
        raise UserError(
            f"config.mesh: {dict(zip(AXES, sizes))} does not fill {num_devices} devices; -1 in one "
            "axis takes what the others leave"
        )
    return tuple(filled)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shardings(mesh: Mesh, batch: dict[str, Any]) -> dict[str, NamedSharding]:
    """The shardings of a batch's arrays: examples over the batch axes, rows over `sequence`."""
    image, label = PartitionSpec(BATCH_AXES, "sequence"), PartitionSpec(BATCH_AXES)
    return {
        name: NamedSharding(mesh, image if array.ndim > 1 else label)
        for name, array in batch.items()
    }


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The shardings of the arrays of parameters, EMA or optimizer state.

    An array of the blocks, or of what is between the levels of a U, is split over `fsdp` as
    `split_rows` says. All others, 1 % of a model, are on every device.
    """

    def place(path: tuple, array: Any) -> NamedSharding:
        names = {getattr(key, "key", None) for key in path}
        is_split = not names.isdisjoint((LAYERS, RESAMPLING))
        spec = split_rows(array.shape, mesh) if is_split else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def gather_layer(mesh: Mesh, layer: Any) -> Any:
    """Gather a layer's parameters on every device; their gradients are summed and split again.

    Without this constraint the partitioner gathers the activations of the global batch to make a
    split gradient.
    """
    return jax.lax.with_sharding_constraint(layer, replicated(mesh))


def split_over_fsdp(mesh: Mesh, x: jax.Array) -> jax.Array:
    """Give each device along `fsdp` its share of the first axis, of any length."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("fsdp")))


def split_rows(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array of the blocks lives: split over `fsdp`, if it can be.

    The first axis stays whole. Of the others it is the longest but the last, or else the last:
    parts of other axes are contiguous, so that a gathered array, and a gradient that is to be
    split, need no copy.
    """
    size = mesh.shape["fsdp"]
    fitting = [axis for axis in range(1, len(shape)) if shape[axis] % size == 0]
    if size == 1 or not fitting or math.prod(shape[1:]) < MIN_SPLIT_ELEMENTS:
        return PartitionSpec()
    rows = max(fitting, key=lambda axis: (axis < len(shape) - 1, shape[axis], axis))
    return PartitionSpec(*[None] * rows, "fsdp")


def num_batch_parts(mesh: Mesh) -> int:
    """The number of parts into which the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_divides(config: Config, mesh: Mesh) -> None:
    """Raise UserError unless the mesh divides a batch, its microbatches and an image's rows."""
    training = config.training
    if training.batch_size % (num_batch_parts(mesh) * training.num_microbatches):
        divisor = f"the {num_batch_parts(mesh)} devices of mesh.data and mesh.fsdp"
        if training.num_microbatches > 1:
            divisor += f" times training.num_microbatches = {training.num_microbatches}"
        raise UserError(
            f"config.training.batch_size must be a multiple of {divisor}, got {training.batch_size}"
        )
    check_rows(config, mesh)


def check_rows(config: Config, mesh: Mesh) -> None:
    """Raise UserError unless the mesh divides an image's rows of tokens."""
    model, num_parts = config.model, mesh.shape["sequence"]
    has_pyramid = model.name == "dit" and "delta_conv" in model.pattern
    middle = config.token_grid[0] // 2 ** (model.num_levels - 1)
    for factor in (1, *(model.pyramid if has_pyramid else ())):
        rows = middle // factor
        if rows % num_parts:
            at = "" if model.levels is None else " in the middle of config.model.levels"
            at += "" if factor == 1 else f" at factor {factor} of config.model.pyramid"
            raise UserError(
                f"config.mesh.sequence must divide the {rows} rows of tokens{at}, got {num_parts}"
            )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The indices in a batch of the examples that this process's devices hold, in rising order."""
    places = split_over_batch(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in places.values()]
    return np.unique(np.concatenate(rows))
