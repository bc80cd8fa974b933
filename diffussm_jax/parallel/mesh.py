"""The device mesh and where arrays live on it: data parallel, parameters replicated."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], *, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, `size` of them ahead: a thread puts them there while a step runs."""

    def load() -> dict[str, jax.Array] | None:
        batch = next(batches, None)
        return None if batch is None else shard_batch(mesh, batch)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        ready = deque(pool.submit(load) for _ in range(size))
        while (batch := ready.popleft().result()) is not None:
            ready.append(pool.submit(load))
            yield batch


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError unless the devices divide the batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"config.training.batch_size must be a multiple of the {mesh.size} devices, got {batch_size}"
        )
