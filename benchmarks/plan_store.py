"""A file of plans, so that a benchmark which takes hours goes on where it ended; and its page."""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.plan import make_plan


def kept_plan(store: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The plan of this key in a JSON file; if it is missing, make it and add it to the file."""
    plans = read_as(store, dict) if store.exists() else {}
    if key not in plans:
        sys.stderr.write(f"{key}\n")
        plans[key] = make()
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, plans)
    return plans[key]


def plan_shipped(name: str, topology: str, *, most_fsdp: int | None = None) -> dict[str, Any]:
    """The plan of a shipped config, as "imagenet256" or "imagenet256:B", or why it was refused.

    Args:
        most_fsdp: what `mesh.fsdp` is reduced to where it is more.
    """
    module, _, size = name.partition(":")
    values = importlib.import_module(f"configs.{module}").get_config(*filter(None, [size]))
    values = values.to_dict()
    if most_fsdp is not None:
        values["mesh"]["fsdp"] = min(values["mesh"]["fsdp"], most_fsdp)
    try:
        return make_plan(from_dict(values), topology).to_dict()
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
