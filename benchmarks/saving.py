"""For what share of a run's time do its saves hold up the loop?

python -m benchmarks.saving [--steps 500] trains the demo (configs/digits.py) with a checkpoint
every 100 steps. It times each call of `Checkpoints.save` from when the devices have finished the
step that is saved: until then the loop would wait in any case. The share is of the time from the
end of the first step, which is compilation, to the end of the last.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from configs import digits
from diffussm_jax.config import from_dict
from diffussm_jax.train import train
from diffussm_jax.training.watchdog import Watchdog
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.record import Record

EVERY = 100


def timed(save: Callable[..., None], seconds: list[float]) -> Callable[..., None]:
    """`Checkpoints.save`, which also notes how long it held up each caller."""

    @functools.wraps(save)
    def call(self: Checkpoints, step: int, state: Any, record: Record) -> None:
        jax.block_until_ready(state)
        began = time.perf_counter()
        save(self, step, state, record)
        seconds.append(time.perf_counter() - began)

    return call


def noted(function: Callable[..., None], times: list[float]) -> Callable[..., None]:
    """A function that also notes when each call of it ended."""

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        function(*arguments)
        times.append(time.perf_counter())

    return call


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving")
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    config = digits.get_config()
    config.training.num_steps = steps
    config.training.eval_every = config.training.sample_every = steps
    config.checkpoint.every = EVERY
    held_up: list[float] = []
    ends: list[float] = []
    Checkpoints.save = timed(Checkpoints.save, held_up)  # type: ignore[method-assign]
    Watchdog.watch = noted(Watchdog.watch, ends)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train(from_dict(config.to_dict()), Path(folder))
    in_time = held_up[:-1]  # the last comes after the last step
    share = sum(in_time) / (ends[-1] - ends[0])
    sys.stdout.write(
        f"{len(in_time)} saves held up the loop for {1e3 * sum(in_time) / len(in_time):.0f} ms "
        f"each, {share:.2%} of the time of {steps} steps\n"
    )


if __name__ == "__main__":
    main()
