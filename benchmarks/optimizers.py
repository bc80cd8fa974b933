"""What does a step of Muon cost beside one of AdamW?

python -m benchmarks.optimizers [--steps 40]

Trains `configs/digits.py` on this machine, a step by each in turn, so that both meet the same load.
Prints the median times.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from diffussm_jax.config import from_dict
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, abstract_state, init_state
from diffussm_jax.training.step import compile_train_step

NAMES = ("adamw", "muon")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers")
    parser.add_argument("--steps", type=int, default=40, help="of each optimizer")
    options = parser.parse_args()
    mesh = make_mesh(devices=jax.local_devices()[:1])
    steps, states = {}, {}
    for name in NAMES:
        values = digits.get_config()
        values.optimizer.name = name
        config = from_dict(values.to_dict())
        graphdef, _ = abstract_model(config, mesh)
        steps[name] = compile_train_step(config, graphdef, abstract_state(config, mesh), mesh)
        states[name] = jax.jit(init_state, static_argnums=(0, 1))(config, make_optimizer(config))
    size, grid = config.training.batch_size, config.grid
    batch = {"image": jnp.zeros((size, *grid), jnp.uint8), "label": jnp.zeros(size, jnp.int32)}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(options.steps + 2):
        for name in NAMES:
            began = time.perf_counter()
            states[name], _ = jax.block_until_ready(steps[name](states[name], batch))
            times[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * np.median(times[name][2:]) for name in NAMES}
    sys.stdout.write(
        f"adamw {medians['adamw']:.1f} ms, muon {medians['muon']:.1f} ms a step: "
        f"{medians['muon'] / medians['adamw']:.2f} times\n"
    )


if __name__ == "__main__":
    main()
