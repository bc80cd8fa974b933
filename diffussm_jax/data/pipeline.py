"""Examples to batches, in an order that is a pure function of (seed, epoch, index).

The stream of examples is shuffled, repeated and cut into batches. A process reads those rows of a
batch that its devices hold. The examples of a step are therefore the same for any number of
processes, and the only state of the input is the step.
"""

import os
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int

from diffussm_jax.config import Config
from diffussm_jax.data.faults import BadRecordError, Faults
from diffussm_jax.data.latents import LatentSource
from diffussm_jax.data.sources import Example, Source, open_images
from diffussm_jax.data.transforms import mirrored

Batch = dict[str, np.ndarray]

MAX_WORKERS = 16  # by default; more threads would wait for Python's lock


def open_source(config: Config, split: str) -> Source:
    """Open what the config trains on: the images of a split, or their cached latents.

    Raises:
        UserError: it is missing, damaged, or does not fit the config.
    """
    if config.data.space == "latents":
        return LatentSource(config, split)
    return open_images(config, split)


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

    def read(step: int, indices: np.ndarray) -> Batch:
        flips = np.zeros(size, bool)
        if config.data.flip:
            flips = mirrored(config.seed, start=step * size, num=size)
        return _stack(source, indices[rows], flips[rows], faults)

    batches = _order(config, len(source)).map_with_index(read)[start_step:]
    # Each thread prepares a batch, so memory holds as many batches, and one more that waits.
    return iter(batches.to_iter_dataset(read_options(config, ahead=1)))


def example_indices(config: Config, *, num_examples: int, step: int) -> Int[np.ndarray, " b"]:
    """The indices of the examples in the batch after `step` steps.

    Where one of them is bad, `train_batches` takes the next good one instead.
    """
    return _order(config, num_examples)[step]


def _order(config: Config, num_examples: int) -> grain.MapDataset:
    """The indices of the examples of every batch."""
    order = grain.MapDataset.range(num_examples).seed(config.seed).shuffle().repeat()
    return order.batch(config.training.batch_size)


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
    size = config.training.batch_size
    rows = np.arange(size) if rows is None else rows
    num_batches = max(1, min(config.training.eval_batches, len(source) // size))
    faults = Faults(config.data.on_error, num_records=len(source))
    starts = size * np.arange(num_batches)[:, None]
    flips = np.zeros(len(rows), bool)
    return [_stack(source, indices, flips, faults) for indices in (starts + rows) % len(source)]


def _stack(source: Source, indices: np.ndarray, flips: np.ndarray, faults: Faults) -> Batch:
    examples = [
        read_good(source, int(index), bool(flip), faults) for index, flip in zip(indices, flips)
    ]
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
            index = (index + 1) % len(source)
