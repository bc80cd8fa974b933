"""Training and sampling on this backend: images a second, memory, and the share of what its matrix products reach."""

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
from diffussm_jax.planning.estimate import FLOPS_PER_MULTIPLY_ADD, total_bytes
from diffussm_jax.planning.multiply_adds import multiply_adds
from diffussm_jax.training.optimizer import make_optimizer
from diffussm_jax.training.state import abstract_model, init_params, init_state

PRODUCT = 2048  # side of the matrices that measure a backend


@dataclasses.dataclass
class Row:
    """One model; None where it would take more memory than it may."""

    model: str
    layers: int
    tokens: int
    million_parameters: float
    giga_multiply_adds: float  # of an image's forward pass, without the SSM operator
    training: float | None = None  # images a second
    training_mfu: float | None = None
    training_gib: float | None = None
    sampling: float | None = None  # images a second, of `steps` steps
    sampling_mfu: float | None = None
    sampling_gib: float | None = None


# Seconds of the wall, or of this process: of a machine that does other work too, pinned to a core (`taskset -c 0`).
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def measure(subjects: dict[str, Config], *, rounds: int, max_gib: float, clock: str) -> list[Row]:
    """All models in turn, `rounds` times, so that what else the machine does meets all alike; medians."""
    rows = {name: _row(name, config) for name, config in subjects.items()}
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
    """The median seconds of each call, after one to warm up."""
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
    """Of the chip where it is published, else what a large matrix product reaches here."""
    kind = jax.devices()[0].device_kind
    if kind in CHIPS:
        return CHIPS[kind].peak_flops
    x = jnp.ones((PRODUCT, PRODUCT), dtype)
    product = jax.jit(jnp.matmul)
    (seconds,) = interleaved({"product": lambda: product(x, x)}, 5, clock).values()
    return 2 * PRODUCT**3 / seconds


def _row(name: str, config: Config) -> Row:
    _, params = abstract_model(config)
    height, width, _ = config.grid
    return Row(
        name,
        config.model.depth,
        height * width // config.model.patch_size**2,
        sum(x.size for x in jax.tree.leaves(params)) / 1e6,
        multiply_adds(config).without_ssm / 1e9,
    )


def _add(row: Row, kind: str, config: Config, seconds: float, clock: str) -> None:
    """Images a second and MFU of a call that took so long."""
    if kind == "training":
        images, work = config.training.batch_size, FLOPS_PER_MULTIPLY_ADD
    else:
        images, work = config.sample.num, 2 * config.sample.steps
    flops = work * 1e9 * row.giga_multiply_adds * images
    setattr(row, kind, images / seconds)
    setattr(row, f"{kind}_mfu", flops / seconds / peak_flops(config.model.dtype, clock))


def _training(config: Config) -> tuple[Any, Callable]:
    """The compiled step, and what makes of it a call that trains on with the same batch."""
    step, abstract, batch = programs.train_step(config, _one_device())
    compiled = step.lower(abstract, batch).compile()

    def start(compiled):
        state = jax.jit(lambda: init_state(config, make_optimizer(config.optimizer)))()
        full = jax.tree.map(_ones, batch)

        def call():
            nonlocal state
            state, metrics = compiled(state, full)
            return metrics

        return call

    return compiled, start


def _sampling(config: Config) -> tuple[Any, Callable]:
    """The compiled sampler, decoding excepted, and what makes a call of it."""
    run, (abstract, *rest) = programs.sampler(config, _one_device())
    compiled = run.lower(abstract, *rest).compile()

    def start(compiled):
        params = jax.jit(lambda: init_params(config))()
        full = jax.tree.map(_ones, rest)
        return lambda: compiled(params, *full)

    return compiled, start


def _one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


def _ones(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.ones(x.shape, x.dtype)
