"""What shipped configs would do on GPUs: writes docs/gpu-plans.md in an hour on two cores.

.venv-gpu/bin/python -m benchmarks.gpu_plans     (after `make plan-gpu`)

Each plan is kept in runs/gpu_plans.json, so that after a kill the same command goes on. Arguments
are some of the configs, whose tables are printed alone.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.plan_store import (
    kept_plan,
    misfit,
    plan_key,
    plan_or_refusal,
    shipped_config,
    table,
)
from diffussm_jax.config import Config
from diffussm_jax.config.parsing import read_as
from diffussm_jax.planning.gpus import read_topology

CONFIGS = ("imagenet256:B", "imagenet256:S", "imagenet256", "cifar10")
CARDS = ("h100:1", "h100:8", "a100-40:1", "l4:1", "t4:1")
STORE = Path("runs/gpu_plans.json")
PAGE = Path("docs/gpu-plans.md")
HEAD = """# What GPUs would do

`.venv-gpu/bin/python -m benchmarks.gpu_plans` wrote this page on {date}, with jax {jax}.
`make plan-gpu` makes that environment.
This command makes one row again; N is 1, or all the cards where a config splits its parameters:

```bash
.venv-gpu/bin/python -m diffussm_jax.main --mode=plan --config=configs/CONFIG.py:SIZE \\
    --config.plan.topology=CARDS --config.mesh.fsdp=N
```

**Nothing here ran on a card.**
The memory is what XLA's compiler plans.
The times are bounds: of the program as compiled here, at published peaks.

- GiB are those of one card, and the column after them is the 75 % that JAX takes of it by default.
  Where a config does not fit, the times are those with the smallest change that does.
- "at least" is the bound of a step, a sum over its fusions.
  Each takes the time of its products at the card's peak or of its bytes at the memory's bandwidth.
  The longer one counts, and bytes that the cache can hold before and after a fusion do not.
- "memory" is the share of the bound in which the bytes take longer.
- "no cache" is the same sum if the cache spares the memory nothing.
  Runs of DiffuSSM on an H100 took 1.5 times that ([running on GPU](running-on-gpu.md)).
- "links" is the time of the collectives between the cards; it is in neither of the sums.
- Card-hours are those of the complete run.
- Sampling is one batch of `sample.batch_size` images by the config's sampler, before decoding.
- A T4 has no matrix units for bf16, and XLA multiplies there in float32.
  Its bound takes the published peak of fp16, which those products cannot reach.
"""
COLUMNS = (
    "cards",
    "batch",
    "mesh",
    "remat",
    "GiB",
    "of",
    "at least, ms",
    "memory",
    "no cache, ms",
    "GB moved",
    "links, ms",
    "images/s, at most",
    "card-hours, at least",
    "sampling, images/s, at most",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*")
    chosen = parser.parse_args().configs
    for name in chosen or CONFIGS:
        for topology in CARDS:
            config = on_cards(name, topology)
            make = functools.partial(plan_or_refusal, config, topology)
            kept_plan(STORE, name, config, topology, make)
    plans = read_as(STORE, dict)
    if chosen:
        sys.stdout.write("\n".join(tables(plans, chosen)))
    else:
        PAGE.write_text(page(plans), encoding="utf-8")


def on_cards(name: str, topology: str) -> Config:
    """A shipped config that splits its parameters over no more cards than there are."""
    _, number = read_topology(topology)
    return shipped_config(name, most_fsdp=number)


def page(plans: dict[str, dict[str, Any]]) -> str:
    """The document: one table for each config."""
    head = HEAD.format(date=time.strftime("%Y-%m-%d"), jax=version("jax"))
    return "\n".join([head, *tables(plans, CONFIGS)])


def tables(plans: dict[str, dict[str, Any]], names: Iterable[str]) -> Iterator[str]:
    """The table of each of these configs."""
    for config in names:
        keys = {card: plan_key(config, on_cards(config, card), card) for card in CARDS}
        rows = [_row(card, plans.get(key)) for card, key in keys.items()]
        name, _, size = config.partition(":")
        yield table(f"configs/{name}.py{size and f':{size}'}", COLUMNS, rows)


def _row(card: str, plan: dict[str, Any] | None) -> str:
    if plan is None:
        return f"| {card} | not yet planned |"
    if "refused" in plan:
        return f"| {card} | {plan['refused']} |"
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
    first = [card, f"{plan['batch_size']}", mesh, plan["remat"]]
    if not plan["fits"] and not plan["fits_with"]:
        return f"| {' | '.join([*first, *misfit(plan)])} |"
    if not plan["fits"]:
        first += misfit(plan)[:2]
        first[3] += f"; fits with {', '.join(f'{k}={v}' for k, v in plan['fits_with'].items())}"
    else:
        first += [f"{plan['total_gib']:.1f}", f"{plan['hbm_gib']:.0f}"]
    least, sampler = plan["bound"], plan["sampler"]
    drawn = f"{sampler['bound']['images_per_second']:.1f}" if sampler["fits"] else "does not fit"
    cells = [
        *first,
        f"{least['step_ms']:.0f}",
        f"{least['memory_share']:.0%}",
        f"{least['uncached_step_ms']:.0f}",
        f"{least['moved_gb']:,.0f}",
        f"{least['collective_ms']:.0f}",
        f"{least['images_per_second']:,.0f}",
        f"{least['chip_hours']:,.0f}",
        f"{drawn} of {sampler['batch_size']}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
