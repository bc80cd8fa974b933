"""Examples to batches, in an order that is a pure function of (seed, epoch, index).

The stream of examples is shuffled, repeated and cut into batches; with buckets each has a stream of
its own, and they take turns. A process reads those rows of a batch that its devices hold. The
examples of a step are therefore the same for any number of processes, and the only state of the
input is the step.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import Int

from diffussm_jax.config import Config
from diffussm_jax.data.faults import BadRecordError, Faults
from diffussm_jax.data.latents import open_latents
from diffussm_jax.data.sources import Buckets, Example, Source, open_images
from diffussm_jax.data.transforms import mirrored

Batch = dict[str, np.ndarray]

MAX_WORKERS = 16  # by default; more threads would wait for Python's lock


def open_source(config: Config, split: str) -> Source:
    """Open what the config trains on: the images of a split, or their cached latents.

    Raises:
        UserError: it is missing, damaged, or does not fit the config.
    """
    if config.data.space == "latents":
        return open_latents(config, split)
    return open_images(config, split)


def open_of_one_size(config: Config, split: str) -> Source:
    """As `open_source`, but of several buckets that of `data.image_size` alone."""
    source = open_source(config, split)
    if isinstance(source, Buckets):
        return source.sources[config.data.bucket_sides.index(config.data.sides)]
    return source


def stacks_of(source: Source) -> Sequence[range]:
    """The runs of a source's examples that fit into one batch: those of a bucket, or all."""
    return source.runs if isinstance(source, Buckets) else [range(len(source))]


def train_batches(
    config: Config, source: Source, *, start_step: int = 0, rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yield batches of a source without end, from the one after `start_step` steps on.

    A batch has the source's examples stacked, [len(rows), ...]: its `rows`, by default all.

    Raises:
        UserError: a record is bad, or too many are (`data.on_error`).
    """
    size = config.training.batch_size
    rows = np.arange(size) if rows is None else rows
    faults = Faults(config.data.on_error, num_records=len(source))
    read_all = _mapping(source)

    def read(step: int, indices: np.ndarray) -> Batch:
        flips = np.zeros(size, bool)
        if config.data.flip:
            flips = mirrored(config.seed, start=step * size, num=size)
        return _stack(source, indices[rows], flips[rows], faults, read_all)

    batches = _order(config, stacks_of(source)).map_with_index(read)[start_step:]
    # Each thread prepares a batch, so memory holds as many batches, and one more that waits.
    return iter(batches.to_iter_dataset(read_options(config, ahead=1)))


def example_indices(config: Config, runs: Sequence[range], *, step: int) -> Int[np.ndarray, " b"]:
    """The indices of the examples in the batch after `step` steps.

    Where one of them is bad, `train_batches` takes the next good one instead.

    Args:
        runs: those of the source, as `stacks_of` gives them.
    """
    return _order(config, runs)[step]


def _order(config: Config, runs: Sequence[range], *, shuffled: bool = True) -> grain.MapDataset:
    """The indices of the examples of every batch, without end."""
    batches = []
    for run in runs:
        order = grain.MapDataset.range(run.start, run.stop).seed(config.seed)
        order = order.shuffle() if shuffled else order
        batches.append(order.repeat().batch(config.training.batch_size))
    if len(batches) == 1:
        return batches[0]
    return grain.MapDataset.mix(batches, weights=[len(run) for run in runs])


def read_options(config: Config, *, ahead: int) -> grain.ReadOptions:
    """Options for `data.workers` threads that keep `ahead` elements ready besides those in work.

    Where `data.workers` is 0, elements are read when they are needed, without threads.
    """
    workers = config.data.workers
    if workers is None:
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
    buffer = workers + ahead if workers else 0
    return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=buffer)


def eval_batches(
    config: Config, source: Source, *, rows: np.ndarray | None = None
) -> Sequence[Batch]:
    """The first `training.eval_batches` batches of a held-out source, unmirrored.

    They are the same at every evaluation. A source with fewer images gives fewer batches; one that
    is smaller than a batch is repeated to fill it.
    """
    size, runs = config.training.batch_size, stacks_of(source)
    rows = np.arange(size) if rows is None else rows
    num_batches = sum(len(run) // size for run in runs)
    num_batches = max(1, min(config.training.eval_batches, num_batches))
    faults = Faults(config.data.on_error, num_records=len(source))
    order = _order(config, runs, shuffled=False)
    flips = np.zeros(len(rows), bool)
    read_all = _mapping(source)
    return [_stack(source, order[i][rows], flips, faults, read_all) for i in range(num_batches)]


def _mapping(source: Source) -> Callable[..., Iterator[Example]]:
    """`map`, with many calls at a time while a source's reads wait for a bucket."""
    if source.parallel_reads == 1:
        return map
    pool = ThreadPoolExecutor(source.parallel_reads)
    return lambda *of: (pool.map if source.parallel_reads > 1 else map)(*of)


def _stack(
    source: Source,
    indices: np.ndarray,
    flips: np.ndarray,
    faults: Faults,
    read_all: Callable[..., Iterator[Example]],
) -> Batch:
    def read(index: int, flip: bool) -> Example:
        return read_good(source, index, flip, faults)

    examples = list(read_all(read, indices.tolist(), flips.tolist()))
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def read_good(source: Source, index: int, flip: bool, faults: Faults) -> Example:
    """Read example `index`; where bad ones are skipped, read the next good one instead.

    Which one that is does not change from pass to pass.

    Raises:
        UserError: the example is bad and may not be skipped, or too many are bad.
    """
    while True:
        try:
            return source.example(index, mirrored=flip)
        except BadRecordError as error:
            faults.note(index, error)
            run = next(run for run in stacks_of(source) if index in run)
            index = run[(run.index(index) + 1) % len(run)]
