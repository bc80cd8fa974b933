"""What every shipped config would do on six TPU slices: writes docs/tpu-plans.md in an hour.

python -m benchmarks.tpu_plans

Each plan is kept in runs/tpu_plans.json, so that after a kill the same command goes on. Arguments
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
from diffussm_jax.config.parsing import read_as

CONFIGS = (
    "imagenet256",
    "imagenet512",
    "dit256",
    "lsun256",
    "folder256",
    "cifar10",
    "digits",
    "photos",
)
# The names of Google Cloud count cores on v4, v5p and TPU7x, and chips on the others.
SLICES = {
    "v4-32": "v4:2x2x4",
    "v5e-16": "v5e:4x4",
    "v5e-256": "v5e:16x16",
    "v5p-32": "v5p:2x2x4",
    "v6e-16": "v6e:4x4",
    "tpu7x-16": "tpu7x:2x2x2",
}
STORE = Path("runs/tpu_plans.json")
PAGE = Path("docs/tpu-plans.md")
HEAD = """# What TPU slices would do

`python -m benchmarks.tpu_plans` wrote this page on {date}, with jax {jax} and libtpu {libtpu}.
This command makes one row again:

```bash
python -m diffussm_jax.main --mode=plan --config=configs/CONFIG.py --config.plan.topology=TOPOLOGY
```

**These are estimates by the TPU compiler: nothing here ran on a chip.**

- The time of a step is the compiler's cycles, kernels included, over the clock.
  It includes what kernels wait for: the first blocks that they read and the last that they write.
  It includes neither the collectives nor reading data.
  "links" is the collectives' time on the links between chips.
  The part of it that the matrix products do not hide adds to the step.
- MFU is 6 x the multiply-adds of an image's dense layers, over the chips' peak.
  Nothing that is recomputed is counted.
- GiB are those of one chip, and the column after them is what a chip has.
- Chip-hours are those of the complete run.
- A TPU7x chip is two devices for JAX, and its GiB are those of a device.
  Its chip-hours are device-hours, twice those of chips.
- Sampling is one batch of `sample.batch_size` images by the config's sampler, before decoding.
  A larger batch uses a large slice better.
"""
COLUMNS = (
    "slice",
    "topology",
    "batch",
    "mesh",
    "remat",
    "GiB",
    "of",
    "step, ms",
    "links, ms",
    "images/s",
    "MFU",
    "chip-hours",
    "sampling, images/s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*")
    chosen = parser.parse_args().configs
    for name in chosen or CONFIGS:
        config = shipped_config(name)
        for topology in SLICES.values():
            make = functools.partial(plan_or_refusal, config, topology)
            kept_plan(STORE, name, config, topology, make)
    plans = read_as(STORE, dict)
    if chosen:
        sys.stdout.write("\n".join(tables(plans, chosen)))
    else:
        PAGE.write_text(page(plans), encoding="utf-8")


def page(plans: dict[str, dict[str, Any]]) -> str:
    """The document: one table for each config."""
    versions = {name: version(name) for name in ("jax", "libtpu")}
    head = HEAD.format(date=time.strftime("%Y-%m-%d"), **versions)
    return "\n".join([head, *tables(plans, CONFIGS)])


def tables(plans: dict[str, dict[str, Any]], names: Iterable[str]) -> Iterator[str]:
    """The table of each of these configs."""
    for name in names:
        config = shipped_config(name)
        rows = [
            _row(cloud, topology, plans.get(plan_key(name, config, topology)))
            for cloud, topology in SLICES.items()
        ]
        yield table(f"configs/{name}.py", COLUMNS, rows)


def _row(cloud: str, topology: str, plan: dict[str, Any] | None) -> str:
    if plan is None:
        return f"| {cloud} | {topology} | not yet planned |"
    if "refused" in plan:
        return f"| {cloud} | {topology} | {plan['refused']} |"
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
    first = [cloud, topology, f"{plan['batch_size']}", mesh, plan["remat"]]
    if not plan["fits"]:
        return f"| {' | '.join([*first, *misfit(plan)])} |"
    sampler = plan["sampler"]
    drawn = f"{sampler['images_per_second']:.1f}" if sampler["fits"] else "does not fit"
    cells = [
        *first,
        f"{plan['total_gib']:.1f}",
        f"{plan['hbm_gib']:.0f}",
        f"{plan['step_ms']:.1f}",
        f"{plan['collective_ms']:.1f}",
        f"{plan['images_per_second']:,.0f}",
        f"{plan['mfu']:.1%}",
        f"{plan['chip_hours']:,.0f}",
        f"{drawn} of {sampler['batch_size']}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
