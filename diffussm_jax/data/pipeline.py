"""Examples to batches, in an order that is a pure function of (seed, epoch, index).

The stream is shuffled as a whole, repeated, cut into batches and only then dealt to the processes, so the
examples of a step are the same whatever the number of processes, and the state of the input is the step.
"""

import os
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from diffussm_jax.config import Config
from diffussm_jax.data.faults import BadRecordError, Faults
from diffussm_jax.data.latents import LatentSource
from diffussm_jax.data.sources import Example, Source, open_images
from diffussm_jax.data.transforms import mirrored

Batch = dict[str, np.ndarray]

MAX_WORKERS = 16  # by default: more threads wait for Python's lock


def open_source(config: Config, split: str) -> Source:
    """What the config trains on: the images of a split, or their cached latents.

    Raises:
        UserError: it is missing, damaged, or does not fit the config.
    """
    if config.data.space == "latents":
        return LatentSource(config, split)
    return open_images(config, split)


def train_batches(
    config: Config,
    source: Source,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches of a source from `start_step` on.

    Yields:
        the source's examples, stacked: [batch_size / process_count, ...].

    Raises:
        UserError: a record is bad, or too many are (`data.on_error`).
    """
    size = config.training.batch_size // process_count
    faults = Faults(config.data.on_error, num_records=len(source))

    def read(batch_index: int, indices: np.ndarray) -> Batch:
        flips = mirrored(config.seed, start=batch_index * size, num=size)
        if not config.data.flip:
            flips = np.zeros_like(flips)
        return _stack(source, indices, flips, faults)

    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
    # Batches of one process's size: those of a step follow each other, and process p takes the p-th.
    batches = order.batch(size).map_with_index(read)
    batches = batches[start_step * process_count + process_index :: process_count]
    # Each thread prepares a batch, so there are as many in memory, and one more that waits.
    return iter(batches.to_iter_dataset(read_options(config, ahead=1)))


def read_options(config: Config, *, ahead: int) -> grain.ReadOptions:
    """`data.workers` threads, and `ahead` elements ready besides those that they work on; no threads where it is 0."""
    workers = config.data.workers
    if workers is None:
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
    buffer = workers + ahead if workers else 0
    return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=buffer)


def eval_batches(
    config: Config,
    source: Source,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Sequence[Batch]:
    """The first `training.eval_batches` batches of a held-out source, unmirrored, the same at each evaluation.

    A source with fewer images gives fewer batches, and one of less than a batch is repeated to fill it.
    """
    size = config.training.batch_size
    num_batches = max(1, min(config.training.eval_batches, len(source) // size))
    faults = Faults(config.data.on_error, num_records=len(source))
    indices = np.arange(num_batches * size) % len(source)
    mine = np.split(indices, num_batches * process_count)[process_index::process_count]
    return [_stack(source, part, np.zeros(len(part), bool), faults) for part in mine]


def _stack(
    source: Source, indices: np.ndarray, flips: np.ndarray, faults: Faults
) -> Batch:
    examples = [
        _read_good(source, int(index), bool(flip), faults)
        for index, flip in zip(indices, flips)
    ]
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def _read_good(source: Source, index: int, flip: bool, faults: Faults) -> Example:
    """Example `index`, or, where bad ones are skipped, the next that is good: the same on every pass."""
    while True:
        try:
            return source.example(index, mirrored=flip)
        except BadRecordError as error:
            faults.note(index, error)
            index = (index + 1) % len(source)
