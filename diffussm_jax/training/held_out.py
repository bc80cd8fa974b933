"""The loss of a run on images that it does not learn from."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.data.pipeline import eval_batches, open_source
from diffussm_jax.parallel.feed import shard_batch
from diffussm_jax.parallel.mesh import local_rows, replicated
from diffussm_jax.training.state import TrainState
from diffussm_jax.training.step import make_eval_step


def make_evaluation(
    config: Config, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """A function from the state to the held-out losses of its EMA; {} without a held-out split."""
    eval_step = jax.jit(make_eval_step(config, graphdef), out_shardings=replicated(mesh))
    size = config.training.batch_size
    batches = _held_out_batches(config, local_rows(mesh, size))

    def evaluate(state: TrainState) -> dict[str, float]:
        losses = [
            eval_step(state.ema, shard_batch(mesh, batch, batch_size=size), index)
            for index, batch in enumerate(batches)
        ]
        names = losses[0] if losses else {}
        return {f"eval_{name}": float(np.mean([x[name] for x in losses])) for name in names}

    return evaluate


def _held_out_batches(config: Config, rows: np.ndarray) -> Sequence[dict[str, np.ndarray]]:
    if config.data.eval_split is None:
        return []
    source = open_source(config, config.data.eval_split)
    return eval_batches(config, source, rows=rows)
