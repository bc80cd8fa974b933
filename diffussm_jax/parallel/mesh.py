"""The device mesh and where arrays live on it: data parallel, parameters replicated."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffussm_jax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over the given devices: by default all of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from each process's part of the batch."""
    sharding = split_over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, part)
        for name, part in batch.items()
    }


def prefetch(
    mesh: Mesh, batches: Iterable[dict[str, np.ndarray]], *, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, `size` of them at a time, so that the next one arrives while a step runs."""
    ready: deque[dict[str, jax.Array]] = deque()
    for batch in batches:
        ready.append(shard_batch(mesh, batch))
        if len(ready) == size:
            yield ready.popleft()
    yield from ready


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError unless the devices divide the batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"config.training.batch_size must be a multiple of the {mesh.size} devices, got {batch_size}"
        )
