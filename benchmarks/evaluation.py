"""Time and memory of the metrics, without the network.

python -m benchmarks.evaluation [--num 50000] [--width 2048]

The features are random float32 in batches of 256, made inside the measured time.
"""

import argparse
import resource
import time

import numpy as np

from diffussm_jax.evaluation.metrics import (
    RunningInceptionScore,
    RunningMoments,
    frechet_distance,
    precision_recall,
)

BATCH_SIZE = 256
NUM_CLASSES = 1008


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--neighbours", type=int, default=10_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| | seconds | peak memory, GiB |\n|---|---|---|")

    start = time.perf_counter()
    running = RunningMoments()
    for _ in range(0, arguments.num, BATCH_SIZE):
        running.add(rng.random((BATCH_SIZE, arguments.width), np.float32))
    moments = running.result()
    _print(f"moments of {running.num} x {arguments.width}", start)

    start = time.perf_counter()
    distance = frechet_distance(moments, moments)
    _print(f"distance of two such moments (found {distance:.1e})", start)

    start = time.perf_counter()
    score = RunningInceptionScore()
    for _ in range(0, arguments.num, BATCH_SIZE):
        score.add(rng.dirichlet(np.ones(NUM_CLASSES), BATCH_SIZE))
    score.result()
    _print(f"Inception Score of {arguments.num} x {NUM_CLASSES}", start)

    start = time.perf_counter()
    shape = arguments.neighbours, arguments.width
    precision_recall(rng.random(shape, np.float32), rng.random(shape, np.float32))
    _print(f"precision and recall of {arguments.neighbours} and as many", start)


def _print(what: str, start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {what} | {time.perf_counter() - start:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
