"""One GPU within a budget of time: training and sampling at the published sizes, and the operator.

What fails or is not reached leaves the rest: all figures so far are written after each.
"""

import functools
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.ssm import arguments
from benchmarks.ssm import host as ssm
from benchmarks.throughput.tables import table
from diffussm_jax.config import Config
from diffussm_jax.ops.s4d import ImplementationName
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.planning import programs
from diffussm_jax.planning.chips import GIB
from diffussm_jax.planning.compiled import total_bytes
from diffussm_jax.planning.estimate import FLOPS_PER_MULTIPLY_ADD
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import TrainState, init_state

IMPLEMENTATIONS: tuple[ImplementationName, ...] = ("chunked", "fft", "associative_scan")
SHAPES = ((8, 1024, 1152), (8, 1024, 384))  # b l d of the operator, at XL's and at S's width
PEAK_SIDE = 8192  # of the matrices whose product gives the peak
LEAST_SECONDS = 0.05  # shorter calls are timed many at once: starting one takes 50 microseconds

Row = dict[str, Any]
Shape = tuple[int, int, int]
Measurement = tuple[str, Callable[[], Row]]


def report(
    models: dict[str, Config],
    out: Path,
    *,
    budget_s: float,
    name: str = "gpu",
    rounds: int = 7,
    shapes: tuple[Shape, ...] = SHAPES,
    peak_side: int = PEAK_SIDE,
) -> list[Row]:
    """Measure until `budget_s` is over, write NAME.json and NAME.md to `out`, print the table.

    A row without figures says why under "failed".
    """
    deadline = time.monotonic() + budget_s
    about = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(about, flush=True)
    rows: list[Row] = []
    for measured, measure in _measurements(models, shapes, rounds, peak_side):
        start = time.monotonic()
        row: Row = {"measured": measured}
        try:
            row |= measure() if start < deadline else {"failed": "not reached"}
        except Exception as error:  # noqa: BLE001 - the others must not be lost with it
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        gc.collect()
        if rows and "tflops" in row and "tflops" in rows[0]:
            row["mfu"] = row["tflops"] / rows[0]["tflops"]
        rows.append(row | {"took_s": time.monotonic() - start})
        print(json.dumps(rows[-1]), flush=True)
        (out / f"{name}.json").write_text(
            json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8"
        )
        (out / f"{name}.md").write_text(f"{about}\n\n{table(rows)}\n", encoding="utf-8")
    print(table(rows))
    return rows


def _measurements(
    models: dict[str, Config], shapes: tuple[Shape, ...], rounds: int, peak_side: int
) -> Iterator[Measurement]:
    """What to measure, in the order in which it would be missed."""
    yield "peak", functools.partial(_peak, peak_side, rounds)
    *first, last = IMPLEMENTATIONS
    yield from _operators(first, shapes, rounds)
    for name, config in models.items():
        model = _Model(config, rounds)
        yield f"{name}, training", model.training
        yield f"{name}, sampling", model.sampling
        del model
        jax.clear_caches()
    yield from _operators([last], shapes, rounds)


def _operators(
    names: list[ImplementationName], shapes: tuple[Shape, ...], rounds: int
) -> Iterator[Measurement]:
    for shape in shapes:
        for name in names:
            yield f"{name}, {shape}", functools.partial(_operator, name, shape, rounds)


def _peak(side: int, rounds: int) -> Row:
    """What a large product in bfloat16 reaches."""
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    row = _timed(functools.partial(jax.jit(jnp.matmul), x, x), rounds)
    return row | {"tflops": 2e-9 * side**3 / row["ms"]}


def _operator(name: ImplementationName, shape: Shape, rounds: int) -> Row:
    """Time forward with backward of s4d, which reads bfloat16; the error is that of float32."""
    u, *parameters = (jnp.asarray(x) for x in arguments.make(*shape))
    operands = [u.astype(jnp.bfloat16), *parameters]
    forward = jax.jit(functools.partial(ssm.apply, implementation=name))

    @jax.jit
    def both(*operands: jax.Array) -> tuple:
        y, vjp = jax.vjp(forward, *operands)
        return y, vjp(y)

    start = time.monotonic()
    compiled = both.lower(*operands).compile()
    compile_s = time.monotonic() - start
    return _timed(functools.partial(compiled, *operands), rounds) | {
        "forward_ms": _timed(functools.partial(forward, *operands), rounds)["ms"],
        "gib": total_bytes(compiled) / GIB,
        "compile_s": compile_s,
        "error": ssm.error(name, shape[1]),
    }


class _Model:
    """Training and sampling of one model, with the same parameters."""

    def __init__(self, config: Config, rounds: int):
        self.config, self.rounds = config, rounds
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.state: TrainState | None = None

    def training(self) -> Row:
        batch_size = self.config.training.batch_size
        step, abstract, batch, _ = programs.train_step(self.config, self.mesh)
        start = time.monotonic()
        compiled = step.lower(abstract, batch).compile()
        compile_s = time.monotonic() - start
        batch = jax.tree.map(_random, batch)
        state, self.state = self._started(), None  # the step takes its memory over

        def call() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch)
            return metrics

        row = self._row(_timed(call, self.rounds), FLOPS_PER_MULTIPLY_ADD * batch_size)
        row["loss"] = float(call()["loss"])
        self.state = state
        return row | {
            "batch": batch_size,
            "images/s": 1e3 * batch_size / row["ms"],
            "gib": total_bytes(compiled) / GIB,
            "compile_s": compile_s,
        }

    def sampling(self) -> Row:
        """Time one call of the model by the sampler, which makes `sample.steps` of them."""
        options = self.config.sample
        run, (abstract, *rest) = programs.sampler(self.config, self.mesh)
        start = time.monotonic()
        compiled = run.lower(abstract, *rest).compile()
        compile_s = time.monotonic() - start
        self.state = state = self._started()
        rest = jax.tree.map(_random, rest)
        timed = _timed(lambda: compiled(state.params, *rest), self.rounds)
        timed["ms"] /= options.steps
        row = self._row(timed, 2 * options.num)
        return row | {
            "batch": options.num,
            "images/s": 1e3 * options.num / row["ms"],
            "gib": total_bytes(compiled) / GIB,
            "compile_s": compile_s,
        }

    def _started(self) -> TrainState:
        config = self.config
        return self.state or jax.jit(lambda: init_state(config, make_optimizer(config)))()

    def _row(self, timed: Row, flops_per_multiply_add: int) -> Row:
        work = multiply_adds(self.config).without_ssm * flops_per_multiply_add
        return timed | {"tflops": 1e-9 * work / timed["ms"]}


def _random(x: jax.ShapeDtypeStruct) -> jax.Array:
    """A stand-in for a batch's array; zeros would run faster than data on some chips."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.arange(math.prod(x.shape), dtype=x.dtype).reshape(x.shape) % 10
    return jax.random.uniform(jax.random.key(1), x.shape, x.dtype)


def _timed(call: Callable[[], Any], rounds: int) -> Row:
    """Median milliseconds of a call after two to warm up, and the spread of the rounds over it."""
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        once = time.perf_counter() - start
    repeats = max(1, min(100, round(LEAST_SECONDS / once)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            result = call()
        jax.block_until_ready(result)
        times.append(1e3 * (time.perf_counter() - start) / repeats)
    median = statistics.median(times)
    return {"ms": median, "spread": (max(times) - min(times)) / median}
