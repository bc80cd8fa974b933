"""A file of plans, so that a benchmark which takes hours goes on where it ended; and its page."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffussm_jax.config import Config, from_dict, to_json
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.plan import make_plan
from diffussm_jax.planning.gpus import is_gpus


def kept_plan(
    store: Path, name: str, config: Config, topology: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The plan of this key in a JSON file; if it is missing, make it and add it to the file."""
    key = plan_key(name, config, topology)
    plans = read_as(store, dict) if store.exists() else {}
    if key not in plans:
        sys.stderr.write(f"{key}\n")
        plans[key] = make()
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, plans)
    return plans[key]


def plan_key(name: str, config: Config, topology: str) -> str:
    """What tells plans apart: their name, topology, config and compiler.

    A changed model is not told: after that a benchmark begins with another file.
    """
    packages = ("jax",) if is_gpus(topology) else ("jax", "libtpu")
    compiler = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name} {topology}, config {digest(config)}, {compiler}"


def digest(config: Config) -> str:
    """What tells a config from others."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:8]


def shipped_config(name: str, *, most_fsdp: int | None = None) -> Config:
    """A shipped config, as "imagenet256" or "imagenet256:B".

    Args:
        most_fsdp: what `mesh.fsdp` is reduced to where it is more.
    """
    module, _, size = name.partition(":")
    values = importlib.import_module(f"configs.{module}").get_config(*filter(None, [size]))
    values = values.to_dict()
    if most_fsdp is not None:
        values["mesh"]["fsdp"] = min(values["mesh"]["fsdp"], most_fsdp)
    return from_dict(values)


def plan_or_refusal(config: Config, topology: str) -> dict[str, Any]:
    """The plan of a config, or why it was refused."""
    try:
        return make_plan(config, topology).to_dict()
    except UserError as error:
        return {"refused": str(error)}


def table(title: str, columns: Sequence[str], rows: Iterable[str]) -> str:
    """A section of Markdown that is a table."""
    rule = "|".join(["---"] * len(columns))
    return "\n".join([f"## {title}", "", f"| {' | '.join(columns)} |", f"|{rule}|", *rows, ""])


def misfit(plan: dict[str, Any]) -> list[str]:
    """The cells of a plan that does not fit: what it needs, what there is, and what would fit."""
    needed = plan["needed_gib"] or plan["total_gib"]
    way = ", ".join(f"{k}={v}" for k, v in (plan["fits_with"] or {}).items())
    mend = f"does not fit; fits with {way}" if way else "does not fit"
    return [f"{needed:.1f}", f"{plan['hbm_gib']:.0f}", mend]
