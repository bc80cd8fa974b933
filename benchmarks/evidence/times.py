"""Seconds to draw an image with the networks of several rows, side by side in one process.

python -m benchmarks.evidence.times fashion_dit fashion_s4d_alone [--config.x.y=VALUE]

The networks have random weights, which cost what trained ones do. They take turns, and each
figure is a median over the turns; the last column is a median of ratios to the first row's, turn
by turn. Draws in the first way that the first row is scored in.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.evidence.__main__ import chosen_rows, read_options
from benchmarks.evidence.rows import Row
from benchmarks.evidence.study import Study, sample_options
from benchmarks.throughput.tables import table
from diffussm_jax.config import Config
from diffussm_jax.errors import CommandEnd
from diffussm_jax.models import create_model
from diffussm_jax.parallel.mesh import make_mesh, replicated
from diffussm_jax.parallel.settings import start_jax
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.training.state import abstract_model


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    args, others = parser.parse_known_args(words)
    rows = chosen_rows(",".join(args.rows))
    study = Study(Path("unused"), read_options(others))
    start_jax()
    configs = [config_of(study, row, rows[0], args.batch_size) for row in rows]
    runs = [program_of(config) for config in configs]
    turns = [[seconds(run) for run in runs] for _ in range(args.turns + 1)][1:]  # it compiles first
    cells = [
        {
            "row": row.name,
            "G multiply-adds": f"{multiply_adds(config).total / 1e9:.3f}",
            "ms an image": 1e3 * statistics.median(turn[i] for turn in turns) / args.batch_size,
            "over the first's": statistics.median(turn[i] / turn[0] for turn in turns),
        }
        for i, (row, config) in enumerate(zip(rows, configs, strict=True))
    ]
    sys.stdout.write(table(cells) + "\n")


def config_of(study: Study, row: Row, first: Row, batch_size: int) -> Config:
    """A row's config, to draw in the first row's way."""
    options = sample_options(first.scorings[0]) | {"sample.batch_size": str(batch_size)}
    return study.config(row, row.seeds[0], **options)


def program_of(config: Config) -> Callable[[], jax.Array]:
    """What draws one batch of images by a network of random weights."""
    mesh = make_mesh(devices=jax.devices()[:1])
    graphdef, _ = abstract_model(config, mesh)
    params = nnx.to_pure_dict(nnx.state(create_model(config, rngs=nnx.Rngs(0)), nnx.Param))
    params = jax.device_put(params, replicated(mesh))
    indices = jnp.arange(config.sample.batch_size, dtype=jnp.int32)
    labels = indices % config.data.num_classes
    draw = sampling_program(config, graphdef, mesh, config.sample)
    return lambda: draw(params, None, 0, indices, labels)


def seconds(run: Callable[[], jax.Array]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run().block_until_ready()
    return time.perf_counter() - start


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CommandEnd as end:
        sys.stderr.write(f"{end.last_line}\n")
        sys.exit(end.exit_code)
