"""Batches from the host to the devices of a mesh."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffussm_jax.parallel.mesh import batch_shardings, local_rows, replicated, split_over_batch


def shard_batch(
    mesh: Mesh, batch: dict[str, np.ndarray], *, batch_size: int
) -> dict[str, jax.Array]:
    """Make the global arrays of a batch of which this process has the examples `local_rows`."""
    rows = local_rows(mesh, batch_size)
    shardings = batch_shardings(mesh, batch)

    def place_part(name: str, part: np.ndarray) -> jax.Array:
        def read(index: Any) -> np.ndarray:
            mine = np.searchsorted(rows, np.arange(batch_size)[index[0]])
            return part[mine[0] : mine[-1] + 1, *index[1:]]

        shape = batch_size, *part.shape[1:]
        return jax.make_array_from_callback(shape, shardings[name], read)

    return {name: place_part(name, part) for name, part in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Place arrays that every process has, each as its sharding says."""
    return jax.tree.map(
        lambda x, to: jax.make_array_from_callback(x.shape, to, lambda index: x[index]),
        tree,
        shardings,
    )


def split_rows(mesh: Mesh, array: np.ndarray | None) -> jax.Array | None:
    """Split the rows of an array that every process has over the devices; None stays None."""
    return None if array is None else place(array, split_over_batch(mesh))


def to_host(array: jax.Array) -> np.ndarray:
    """Copy an array to the host of every process. Every process must call it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def localize(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays of all processes to each device of a mesh that is this process's own.

    Every process must call it.
    """
    everywhere = jax.tree.leaves(tree)[0].sharding.mesh
    gathered = jax.jit(lambda x: x, out_shardings=replicated(everywhere))(tree)
    mine = jax.tree.map(lambda x: x.addressable_data(0), gathered)
    return jax.device_put(mine, replicated(mesh))


def prefetch(
    mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], *, batch_size: int, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yield batches on the devices; a thread places `size` of them ahead while a step runs."""

    def load() -> dict[str, jax.Array] | None:
        batch = next(batches, None)
        return None if batch is None else shard_batch(mesh, batch, batch_size=batch_size)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        ready = deque(pool.submit(load) for _ in range(size))
        while (batch := ready.popleft().result()) is not None:
            ready.append(pool.submit(load))
            yield batch
