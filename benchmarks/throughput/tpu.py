"""The same comparison by the TPU compiler's estimates, on a machine without a TPU."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.throughput.subjects import (
    DIFFUSSM,
    SAME_TOKENS,
    changed,
    extra_large,
    of_side,
)
from diffussm_jax.config import Config
from diffussm_jax.estimate import estimate
from diffussm_jax.plan import make_plan
from diffussm_jax.workdir import write_atomically

TOKENS_OF_A_CHIP = 16384


def models(topology: str, store: Path) -> list[dict[str, Any]]:
    """Plans of the published sizes, training and sampling."""
    found = {}
    for name, config in extra_large().items():
        key = f"{name} {topology}"
        found[name] = _kept(store, key, lambda config=config: make_plan(config, topology))  # fmt: skip
    return [_row(name, plan) for name, plan in found.items()]


def lengths(topology: str, sides: list[int], store: Path) -> list[dict[str, Any]]:
    """Plans of two layers of width 1152, as many images a chip as make 16,384 tokens."""
    rows = []
    for side in sides:
        subjects = extra_large()
        for name in (DIFFUSSM, SAME_TOKENS):
            config = _two_layers(subjects[name], side)
            key = f"{name} {side} {topology}"
            plan = _kept(store, key, lambda config=config: estimate(config, topology))  # fmt: skip
            rows.append({"tokens": side**2} | _row(name, plan))
    return rows


def _two_layers(config: Config, side: int) -> Config:
    """On four chips, each with its own images."""
    config = of_side(changed(config, depth=2, remat="full"), side)
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, fsdp=1),
        training=dataclasses.replace(
            config.training, batch_size=4 * TOKENS_OF_A_CHIP // side**2
        ),
    )


def _kept(store: Path, key: str, make: Callable[[], Any]) -> dict[str, Any]:
    """A plan takes minutes, so that each is kept and a second run goes on."""
    plans = json.loads(store.read_text()) if store.exists() else {}
    if key not in plans:
        sys.stderr.write(f"{key}\n")
        plans[key] = dataclasses.asdict(make())
        write_atomically(store, json.dumps(plans, indent=1))
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
