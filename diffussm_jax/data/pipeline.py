"""Records to batches, in an order that is a pure function of (seed, epoch, index).

The stream is shuffled as a whole, repeated, cut into batches and only then dealt to the processes, so the
examples of a step are the same whatever the number of processes, and the state of the input is the step.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from diffussm_jax.config import Config
from diffussm_jax.data import transforms
from diffussm_jax.data.sources import Source

Batch = dict[str, np.ndarray]


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
        image: float32 [batch_size / process_count, h, w, c] in [-1, 1];
        label: int32, the class; 0 where the data set has none.
    """
    dataset = grain.MapDataset.source(source)
    dataset = dataset.seed(config.seed).shuffle().repeat().map(_example)
    if config.data.flip:
        dataset = dataset.random_map(
            lambda example, rng: (
                example | {"image": transforms.random_flip(example["image"], rng)}
            )
        )
    # Batches of one process's size: those of a step follow each other, and process p takes the p-th.
    dataset = dataset.batch(config.training.batch_size // process_count)
    dataset = dataset[start_step * process_count + process_index :: process_count]
    options = grain.ReadOptions(
        num_threads=config.data.num_threads, prefetch_buffer_size=64
    )
    return iter(dataset.to_iter_dataset(options))


def eval_batches(
    config: Config,
    source: Source,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Sequence[Batch]:
    """The first `training.eval_batches` batches of a held-out source, the same at each evaluation.

    A source with fewer images gives fewer batches, and one of less than a batch is repeated to fill it.
    """
    batch_size = config.training.batch_size
    num_batches = max(1, min(config.training.eval_batches, len(source) // batch_size))
    dataset = grain.MapDataset.source(source).repeat().map(_example)
    dataset = dataset.batch(batch_size // process_count)
    return list(dataset[process_index : num_batches * process_count : process_count])


def _example(record: dict) -> Batch:
    image = transforms.to_model_range(record["image"])
    return {"image": image, "label": np.asarray(record.get("label", 0), np.int32)}
