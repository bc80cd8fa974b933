"""How fast is each implementation of s4d on this backend? python -m benchmarks.ssm

Prints a Markdown table of median milliseconds, forward and forward + backward.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffussm_jax.ops.s4d import discretize, s4d

IMPLEMENTATIONS = ("chunked", "fft", "associative_scan", "scan")
SHAPES = ((128, 64, 64), (8, 256, 384), (8, 1024, 384), (2, 4096, 384))  # b l d
SLOW = {"associative_scan", "scan"}  # only where b * l * d stays small
SLOW_LIMIT = 1_000_000
NUM_PAIRS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    print("| b, l, d | " + " | ".join(IMPLEMENTATIONS) + " |")
    print("|---" * (len(IMPLEMENTATIONS) + 1) + "|")
    for shape in SHAPES:
        cells = [measure(name, shape, repeats) for name in IMPLEMENTATIONS]
        print(f"| {shape} | " + " | ".join(cells) + " |", flush=True)


def measure(implementation: str, shape: tuple[int, int, int], repeats: int) -> str:
    """Two medians as a cell of the table."""
    if implementation in SLOW and np.prod(shape) > SLOW_LIMIT:
        return "-"
    run = functools.partial(s4d, implementation=implementation)

    def loss(*arguments):
        return jnp.sum(jnp.square(run(*arguments)))

    arguments = make_arguments(*shape)
    forward = median_ms(jax.jit(run), arguments, repeats)
    both = median_ms(jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))), arguments, repeats)
    return f"{forward:.1f} / {both:.1f}"


def make_arguments(b: int, l: int, d: int) -> tuple[jax.Array, ...]:
    """Random input and S4D-Lin parameters of both directions."""
    rng = np.random.default_rng(0)
    log_dt = rng.uniform(np.log(1e-3), np.log(1e-1), (2, d))
    log_re = np.full((2, d, NUM_PAIRS), np.log(0.5))
    a_im = np.broadcast_to(np.pi * np.arange(NUM_PAIRS), (2, d, NUM_PAIRS))
    c = rng.normal(size=(2, d, NUM_PAIRS, 2)) / np.sqrt(2)
    raw = (jnp.asarray(x, jnp.float32) for x in (log_dt, log_re, a_im, c))
    u = jnp.asarray(rng.normal(size=(b, l, d)), jnp.float32)
    return u, *discretize(*raw), jnp.asarray(rng.normal(size=(2, d)), jnp.float32)


def median_ms(function, arguments, repeats: int) -> float:
    """Median wall time after one call that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
