"""The same comparison by the TPU compiler's estimates, on a machine without a TPU."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.plan_store import kept_plan
from benchmarks.ssm.tpu import WIDTH, Estimator, block, gradient, operator
from benchmarks.throughput.subjects import (
    DIFFUSSM,
    PATCHES,
    SAME_TOKENS,
    extra_large,
    of_equal_tokens,
)
from diffussm_jax.config import DIT_SIZES, Config, ModelConfig
from diffussm_jax.models.dit import TransformerBlock
from diffussm_jax.models.mixers import Functions
from diffussm_jax.ops.attention import attention
from diffussm_jax.ops.depthwise import convolution
from diffussm_jax.ops.s4d import s4d
from diffussm_jax.plan import make_plan
from diffussm_jax.planning.chips import GIB
from diffussm_jax.planning.estimate import estimate
from diffussm_jax.planning.tpu_compiler import TooLarge

TOKENS_OF_A_CHIP = 32768


def models(topology: str, store: Path) -> list[dict[str, Any]]:
    """Plans of training and sampling of the published sizes."""
    rows = []
    for name, config in extra_large().items():
        make = functools.partial(_plan, config, topology)
        rows.append(_row(name, kept_plan(store, name, config, topology, make)))
    return rows


def training_steps(topology: str, sides: list[int], store: Path) -> list[dict[str, Any]]:
    """Plans of a training step of XL as the latents grow, in batches of equally many latents."""
    rows, subjects = [], extra_large()
    for side in sides:
        for name in (DIFFUSSM, SAME_TOKENS, PATCHES):
            config = of_equal_tokens(subjects[name], side)
            make = functools.partial(_plan_training, config, topology)
            plan = kept_plan(store, f"{name}, training", config, topology, make)
            row = _row(name, plan)
            row.pop("sampling", None)
            rows.append({"latents": side**2, "tokens": config.num_tokens} | row)
    return rows


def _plan_training(config: Config, topology: str) -> dict[str, Any]:
    return estimate(config, topology).to_dict()


def _plan(config: Config, topology: str) -> dict[str, Any]:
    return make_plan(config, topology).to_dict()


def lengths(topology: str, sides: list[int]) -> list[dict[str, Any]]:
    """A block of each at width 1152, forward and backward, on images of 32,768 tokens together."""
    estimator, rows = Estimator(topology), []
    for side in sides:
        l = side**2
        b = TOKENS_OF_A_CHIP // l
        blocks = {
            DIFFUSSM: block(operator(estimator.pallas_tpu), b, l),
            SAME_TOKENS: _transformer_block(estimator.device, b, l),
        }
        for name, (function, arguments) in blocks.items():
            rows.append({"block": name, "images": b, "tokens": l})
            rows[-1] |= _estimate(estimator, name, b, l, function, *arguments)
    return rows


def _estimate(estimator: Estimator, *program: Any) -> dict[str, Any]:
    try:
        row = estimator.row(*program)
    except TooLarge as error:
        return {"million_cycles": "does not fit", "temporary_gib": error.needed_gib}
    return {"million_cycles": row.total, "temporary_gib": row.temporary_mb * 1e6 / GIB}


def _transformer_block(device: jax.Device, b: int, l: int) -> tuple[Callable, tuple[Any, ...]]:
    """A block of DiT-XL, forward and backward, and its abstract arguments."""
    config = ModelConfig(name="dit", width=WIDTH, num_heads=DIT_SIZES["XL"][2])
    functions = Functions(functools.partial(attention, device=device), s4d, convolution)
    model = jax.eval_shape(lambda: TransformerBlock(config, functions=functions, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    x = jax.ShapeDtypeStruct((b, l, WIDTH), jnp.bfloat16)
    c = jax.ShapeDtypeStruct((b, WIDTH), jnp.bfloat16)
    both = gradient(lambda params, x, c: nnx.merge(graphdef, params)(x, c, (1, l)))
    return (lambda *arguments: both(*arguments)[1]), (x, params, x, c)


def _row(name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The columns of a plan; where it does not fit, the memory that it would need."""
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
