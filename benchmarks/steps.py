"""What does a training step cost under each objective and each optimizer?

python -m benchmarks.steps [--config configs/digits.py] [--steps 40] [--config.x.y=VALUE ...]

Trains on this machine, a step by each in turn, so that all meet the same load. Prints the median
times, and their ratios to a flow's under AdamW. The images are black: a step costs the same.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.evidence import rows
from benchmarks.evidence.__main__ import read_options
from benchmarks.evidence.study import read_value
from diffussm_jax.config import Config, config_file, from_dict
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.parallel.settings import start_jax
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import (
    abstract_model,
    abstract_state,
    init_state,
    stack_in_training,
)
from diffussm_jax.training.step import compile_train_step

FLOW = rows.FLOW | {"diffusion.prediction": "v", "sample.cfg_scale": "1"}
MEAN_FLOW = FLOW | {"diffusion.process": "mean_flow", "diffusion.weighting": "adaptive"}
RECIPES = {
    "flow": FLOW,
    "flow, guidance folded in": FLOW | {"guidance.scale": "1.5"},
    "flow, muon": FLOW | {"optimizer.name": "muon"},
    "mean flow": MEAN_FLOW,
    "mean flow, guidance folded in": MEAN_FLOW | {"guidance.scale": "1.5"},
}


class Subject:
    """A recipe that trains: its compiled step, and its state."""

    def __init__(self, config: Config):
        mesh = make_mesh(devices=jax.local_devices()[:1])
        graphdef, _ = abstract_model(config, mesh, stack=stack_in_training(config))
        self._step = compile_train_step(config, graphdef, abstract_state(config, mesh), mesh)
        self._state = jax.jit(lambda: init_state(config, make_optimizer(config)))()
        size = config.training.batch_size
        self._batch = {
            "image": jnp.zeros((size, *config.grid), jnp.uint8),
            "label": jnp.zeros(size, jnp.int32),
        }

    def seconds(self) -> float:
        """Make a step; give the time that it took."""
        began = time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began


def config_of(file: str, options: dict[str, str]) -> Config:
    """The config of a file with some fields replaced.

    Raises:
        UserError: a field is wrong, or the model is one of latents.
    """
    given = {name: read_value(name, text) for name, text in options.items()}
    config = from_dict(config_file.load(file), given)
    if config.data.space != "pixels":
        raise UserError(f"--config={file} has latents: give one of pixels")
    return config


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, default=40, help="of each")
    options, others = parser.parse_known_args(argv)
    given = read_options(others)
    start_jax()
    subjects = {name: Subject(config_of(options.config, x | given)) for name, x in RECIPES.items()}
    times = [[x.seconds() for x in subjects.values()] for _ in range(options.steps + 2)][2:]
    medians = np.median(times, axis=0)
    ratios = np.median([np.divide(row, row[0]) for row in times], axis=0)
    for name, median, ratio in zip(subjects, medians, ratios):
        sys.stdout.write(f"{name:30} {1e3 * median:8.1f} ms  {ratio:5.2f} times\n")


if __name__ == "__main__":
    try:
        main()
    except CommandEnd as end:
        sys.stderr.write(f"{end.last_line}\n")
        sys.exit(end.exit_code)
