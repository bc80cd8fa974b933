"""The same comparison by the TPU compiler's estimates, on a machine without a TPU."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.ssm.tpu import WIDTH, Estimator, block, gradient, operator
from benchmarks.throughput.subjects import DIFFUSSM, SAME_TOKENS, extra_large
from diffussm_jax.config import DIT_SIZES, ModelConfig
from diffussm_jax.files import write_text
from diffussm_jax.models.dit import TransformerBlock
from diffussm_jax.plan import make_plan
from diffussm_jax.planning.chips import GIB
from diffussm_jax.planning.estimate import needed_gib

TOKENS_OF_A_CHIP = 32768


def models(topology: str, store: Path) -> list[dict[str, Any]]:
    """Plans of the published sizes, training and sampling."""
    found = {}
    for name, config in extra_large().items():
        key = f"{name} {topology}"
        found[name] = _kept(store, key, lambda config=config: make_plan(config, topology))
    return [_row(name, plan) for name, plan in found.items()]


def lengths(topology: str, sides: list[int]) -> list[dict[str, Any]]:
    """A block of each at width 1152, forward and backward, on as many images as make 32,768 tokens."""
    estimator, rows = Estimator(topology), []
    for side in sides:
        l = side**2
        b = TOKENS_OF_A_CHIP // l
        blocks = {
            DIFFUSSM: block(operator(estimator.pallas_tpu), b, l),
            SAME_TOKENS: _transformer_block(b, l),
        }
        for name, (function, arguments) in blocks.items():
            rows.append({"block": name, "images": b, "tokens": l})
            rows[-1] |= _estimate(estimator, name, b, l, function, *arguments)
    return rows


def _estimate(estimator: Estimator, *program) -> dict[str, Any]:
    try:
        row = estimator.row(*program)
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_gib(error)) is None:
            raise
        return {"million_cycles": "does not fit", "temporary_gib": needed}
    return {"million_cycles": row.total, "temporary_gib": row.temporary_mb * 1e6 / GIB}


def _transformer_block(b: int, l: int) -> tuple[Callable, tuple[Any, ...]]:
    """A block of DiT-XL, forward and backward, and its abstract arguments."""
    config = ModelConfig(name="dit", width=WIDTH, num_heads=DIT_SIZES["XL"][2])
    model = jax.eval_shape(lambda: TransformerBlock(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    x = jax.ShapeDtypeStruct((b, l, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((b, WIDTH), jnp.bfloat16)
    both = gradient(lambda params, x, c: nnx.merge(graphdef, params)(x, c))
    return (lambda *arguments: both(*arguments)[1]), (x, params, x, c)


def _kept(store: Path, key: str, make: Callable[[], Any]) -> dict[str, Any]:
    """A plan takes minutes, so that each is kept and a second run goes on."""
    plans = json.loads(store.read_text()) if store.exists() else {}
    if key not in plans:
        sys.stderr.write(f"{key}\n")
        plans[key] = dataclasses.asdict(make())
        write_text(store, json.dumps(plans, indent=1))
    return plans[key]


def _row(name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """What of a plan the table shows; where it does not fit, what it would need."""
    sampler = plan["sampler"] or {}
    row = {
        "model": name,
        "batch": plan["batch_size"],
        "remat": plan["remat"],
        "giga_multiply_adds": plan["multiply_adds"] / 1e9,
    }
    if not plan["fits"]:
        return row | {"gib": plan["needed_gib"] or plan["total_gib"], "fits": "no"}
    return row | {
        "gib": plan["total_gib"],
        "fits": "yes",
        "step_ms": plan["step_ms"],
        "training": plan["images_per_second"],
        "mfu": plan["mfu"],
        "sampling": sampler.get("images_per_second"),
    }
