"""Training and sampling on this backend: images a second, memory and MFU."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.planning import programs
from diffussm_jax.planning.chips import CHIPS, GIB
from diffussm_jax.planning.compiled import total_bytes
from diffussm_jax.planning.estimate import FLOPS_PER_MULTIPLY_ADD
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, init_params, init_state

PRODUCT = 2048  # side of the matrices whose product measures a backend's peak


@dataclasses.dataclass
class Row:
    """One model. A rate is None where the model would take more memory than it may.

    Attributes:
        tokens: of an image.
        giga_multiply_adds: of an image's forward pass, without the SSM operator.
        training: images a second.
        sampling: images a second, each of `sample.steps` steps.
    """

    model: str
    layers: int
    tokens: int
    million_parameters: float
    giga_multiply_adds: float
    training: float | None = None
    training_mfu: float | None = None
    training_gib: float | None = None
    sampling: float | None = None
    sampling_mfu: float | None = None
    sampling_gib: float | None = None


# The wall's time, or this process's: the latter for a machine that does other work too, with the
# process pinned to one core (`taskset -c 0`).
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def measure(subjects: dict[str, Config], *, rounds: int, max_gib: float, clock: str) -> list[Row]:
    """Time all models in turn, `rounds` times, and take medians.

    In turn, so that whatever else the machine does falls on all of them.
    """
    rows = {name: new_row(name, config) for name, config in subjects.items()}
    for kind, make in (("training", _training), ("sampling", _sampling)):
        calls = {}
        for name, config in subjects.items():
            compiled, start = make(config)
            gib = total_bytes(compiled) / GIB
            setattr(rows[name], f"{kind}_gib", gib)
            if gib <= max_gib:
                calls[name] = start(compiled)
        for name, seconds in interleaved(calls, rounds, clock).items():
            _add(rows[name], kind, subjects[name], seconds, clock)
    return list(rows.values())


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int, clock: str) -> dict[str, float]:
    """The median seconds of each call, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(rounds + 1):
        for name, call in calls.items():
            start = CLOCKS[clock]()
            jax.block_until_ready(call())
            if round:
                times[name].append(CLOCKS[clock]() - start)
    return {name: statistics.median(x) for name, x in times.items()}


@functools.cache
def peak_flops(dtype: str, clock: str) -> float:
    """Peak operations a second: as published, else what a large matrix product reaches here."""
    kind = jax.devices()[0].device_kind
    if kind in CHIPS:
        return CHIPS[kind].peak_flops
    x = jnp.ones((PRODUCT, PRODUCT), dtype)
    product = jax.jit(jnp.matmul)
    (seconds,) = interleaved({"product": lambda: product(x, x)}, 5, clock).values()
    return 2 * PRODUCT**3 / seconds


def new_row(name: str, config: Config) -> Row:
    """The row of a model before it is timed."""
    _, params = abstract_model(config)
    return Row(
        name,
        config.model.depth,
        config.num_tokens,
        sum(x.size for x in jax.tree.leaves(params)) / 1e6,
        multiply_adds(config).without_ssm / 1e9,
    )


def _add(row: Row, kind: str, config: Config, seconds: float, clock: str) -> None:
    """Fill in images a second and MFU from the seconds that a call took."""
    if kind == "training":
        images, work = config.training.batch_size, FLOPS_PER_MULTIPLY_ADD
    else:
        images, work = config.sample.num, 2 * config.sample.steps
    flops = work * 1e9 * row.giga_multiply_adds * images
    setattr(row, kind, images / seconds)
    setattr(row, f"{kind}_mfu", flops / seconds / peak_flops(config.model.dtype, clock))


def _training(config: Config) -> tuple[Any, Callable[[Any], Callable[[], Any]]]:
    """The compiled step, and a function from it to a call that trains on with one batch."""
    step, abstract, batch, _ = programs.train_step(config, _one_device())
    compiled = step.lower(abstract, batch).compile()

    def start(compiled: Any) -> Callable[[], Any]:
        state = jax.jit(lambda: init_state(config, make_optimizer(config)))()
        full = jax.tree.map(_ones, batch)

        def call() -> Any:
            nonlocal state
            state, metrics = compiled(state, full)
            return metrics

        return call

    return compiled, start


def _sampling(config: Config) -> tuple[Any, Callable[[Any], Callable[[], Any]]]:
    """The compiled sampler, decoding excepted, and a function from it to a call."""
    run, (abstract, *rest) = programs.sampler(config, _one_device())
    compiled = run.lower(abstract, *rest).compile()

    def start(compiled: Any) -> Callable[[], Any]:
        params = jax.jit(lambda: init_params(config))()
        full = jax.tree.map(_ones, rest)
        return lambda: compiled(params, *full)

    return compiled, start


def _one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


def _ones(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.ones(x.shape, x.dtype)
