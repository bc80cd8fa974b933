"""What it costs where the axes of a mesh do not take whole axes of the slice's chips.

A whole axis may close to a ring, in which data flow both ways. A part of it is a line, and has half
the bandwidth of a ring. Parts that interleave share each link.
"""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from diffussm_jax.config import MeshConfig
from diffussm_jax.parallel.mesh import AXES, make_mesh
from diffussm_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class SplitAxes:
    """How a mesh lies on a slice of which it splits an axis.

    Attributes:
        chips: the slice's chips along each of its axes.
        layout: the chips that an axis of the mesh takes along each axis of the slice. JAX's own
            order of 8 chips scatters some axes, and those are left out.
        slowdown: how many times longer a byte takes in the collectives over an axis of the mesh
            than over whole axes of the slice.
        unsplit_fsdp: what `mesh.fsdp` may be with nothing split, `data` taking the rest.
    """

    chips: tuple[int, ...]
    layout: dict[str, tuple[int, ...]]
    slowdown: dict[str, float]
    unsplit_fsdp: tuple[int, ...]


def split_axes(mesh: Mesh, chip: Chip) -> SplitAxes | None:
    """What a mesh of TPUs splits and what that costs; None if it splits nothing."""
    if not _is_split(mesh):
        return None
    chips, places = _places(mesh)
    layout = {name: tuple(len(x) for x in at) for name, at in places.items()}
    slowdown = {name: _slowdown(at, chips, chip) for name, at in places.items()}
    return SplitAxes(chips, layout, slowdown, _unsplit_fsdp(mesh))


def _places(mesh: Mesh) -> tuple[tuple[int, ...], dict[str, list[np.ndarray]]]:
    """The shape of a slice, and the coordinates of a line of each axis of the mesh within it."""
    grid = mesh.devices
    slices = [getattr(device, "slice_index", 0) for device in grid[:, 0, 0]]
    grid = grid[np.equal(slices, slices[0])]
    chips = tuple(int(x) + 1 for x in np.max([device.coords for device in grid.flat], axis=0))
    chips = chips if chips[2] > 1 else chips[:2]
    places = {}
    for axis, name in enumerate(AXES):
        # Two devices of one chip, as on TPU7x, have the same coordinates.
        line = np.unique([device.coords for device in np.moveaxis(grid, axis, 0)[:, 0, 0]], axis=0)
        at = [np.unique(column) for column in line.T[: len(chips)]]
        if 1 < len(line) == math.prod(len(x) for x in at):
            places[name] = at
    return chips, places


def _is_split(mesh: Mesh) -> bool:
    chips, places = _places(mesh)
    return any(1 < len(x) < n for at in places.values() for x, n in zip(at, chips))


def _slowdown(at: list[np.ndarray], chips: tuple[int, ...], chip: Chip) -> float:
    """The links that whole axes would have, over those that remain."""
    whole = remaining = 0.0
    for axis, x in enumerate(at):
        if len(x) > 1:
            stride = int(x[1] - x[0])
            links = 2 if chip.closes(chips, axis) else 1
            whole += links
            remaining += (links if stride * len(x) == chips[axis] else 1) / stride
    return whole / remaining


def _unsplit_fsdp(mesh: Mesh) -> tuple[int, ...]:
    sequence = mesh.shape["sequence"]
    num_slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    most = mesh.size // num_slices // sequence
    sizes = (size for size in range(2, most + 1) if most % size == 0)
    devices = sorted(mesh.devices.flat, key=lambda device: device.id)
    return tuple(
        size
        for size in sizes
        if not _is_split(make_mesh(MeshConfig(fsdp=size, sequence=sequence), devices))
    )
