"""Has a change made a step slower, larger, or busier with memory? The TPU compiler says.

python -m benchmarks.plan_check [--all] [--accept]

Compiles the train step and a step of the sampler of DiffuSSM-S for a v5e-16, by the fused stack and
by the loop over blocks, and compares them with benchmarks/plan_check.json. --all adds DiffuSSM-XL
on two slices. A figure that grew by more than 3 % fails the check. --accept writes what was found
into the file: a change that is meant to move a figure commits the file too.
"""

import argparse
import concurrent.futures
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from configs import imagenet256
from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.files import write_json
from diffussm_jax.planning.estimate import estimate, estimate_sampler

TABLE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.03
DIGITS = 4  # of a figure in the table
COMMAND = "python -m benchmarks.plan_check"
# One figure for each program: cycles of a step and its reads and writes in HBM, the memory that a
# chip needs, and what arrives over the links between chips.
Figures = dict[str, float]


class Program(NamedTuple):
    """What is compiled: a size of configs/imagenet256.py on a slice."""

    size: str
    topology: str
    stack: str  # model.stack_implementation
    work: str  # train or sample

    @property
    def name(self) -> str:
        """Its key in the table."""
        return f"{self.work} {self.size}, stack {self.stack}, {self.topology}"


# The slowest to compile come first. The loop over blocks is what shows a change of the model's own
# code, which the kernels of the fused stack do not run.
SMALL = [Program("S", "v5e:4x4", s, w) for w in ("train", "sample") for s in ("xla", "pallas_tpu")]
LARGE = [p._replace(size="XL", topology=t) for t in ("v5e:4x4", "v6e:4x4") for p in SMALL]


class Change(NamedTuple):
    """A figure that is not the table's; `before` is None where the table has none."""

    program: str
    quantity: str
    before: float | None
    after: float

    @property
    def grew(self) -> bool:
        """Whether this fails the check."""
        return self.before is None or self.after > self.before

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.program}: {self.quantity} is {self.after:g}, and not in {TABLE.name}"
        verb = "grew" if self.grew else "fell"
        percent = f" by {abs(self.after / self.before - 1):.1%}" if self.before else ""
        return (
            f"{self.program}: {self.quantity} {verb}{percent}, from {self.before:g} to "
            f"{self.after:g}"
        )


def changes(table: dict[str, Figures], measured: dict[str, Figures]) -> Iterator[Change]:
    """Yield what differs by more than the tolerance, in the order of the programs."""
    for program, figures in measured.items():
        known = table.get(program, {})
        for quantity, after in figures.items():
            before = known.get(quantity)
            if before is None or abs(after - before) > TOLERANCE * before:
                yield Change(program, quantity, before, after)


def measure(program: Program) -> Figures:
    """Compile a program and read its figures."""
    config = from_dict(
        imagenet256.get_config(program.size).to_dict(),
        {"model.stack_implementation": program.stack},
    )
    start = time.monotonic()
    if program.work == "train":
        plan = estimate(config, program.topology)
        if plan.speed is None:
            raise UserError(f"{program.name} does not fit any more")
        cycles, steps, gib = plan.speed.cycles, 1, plan.memory.total_gib
        figures = {"link_gb": sum(plan.speed.collective_gb.values())}
    else:
        sampler = estimate_sampler(config, program.topology)
        if sampler.speed is None:
            raise UserError(f"{program.name} does not fit any more")
        cycles, steps, gib = sampler.speed.cycles, sampler.steps, sampler.total_gib
        figures = {}
    sys.stderr.write(f"{program.name}: {time.monotonic() - start:.0f} s\n")
    figures |= {"million_cycles": cycles.million_cycles / steps, "hbm_gb": cycles.hbm_gb / steps}
    figures["memory_gib"] = gib
    return {name: float(f"{figures[name]:.{DIGITS}g}") for name in sorted(figures)}


def measure_all(programs: list[Program]) -> dict[str, Figures]:
    """The figures of each program: one compiles on each core."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        return dict(zip((p.name for p in programs), pool.map(measure, programs)))


def versions() -> dict[str, str]:
    """The packages that decide the figures.

    Raises:
        UserError: there is no libtpu.
    """
    try:
        return {name: version(name) for name in ("jax", "libtpu")}
    except PackageNotFoundError as error:
        raise UserError(f"{COMMAND} needs libtpu, which exists for Linux only: {error}") from error


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="DiffuSSM-XL too: half an hour")
    parser.add_argument("--accept", action="store_true", help="write the figures into the table")
    options = parser.parse_args(words)
    command = f"{COMMAND}{' --all' if options.all else ''} --accept"
    table = read_as(TABLE, dict) if TABLE.exists() else {"versions": versions(), "programs": {}}
    if versions() != table["versions"]:
        here, there = (_names(x) for x in (versions(), table["versions"]))
        if not (options.accept and options.all):
            sys.stdout.write(
                f"not compared: {TABLE.name} was made with {there}, and this is {here}. Use the "
                f"versions that requirements.txt has for its Python; where it has new ones, "
                f"`{COMMAND} --all --accept` makes the table again\n"
            )
            return 0
        table = {"versions": versions(), "programs": {}}
    measured = measure_all([*SMALL, *(LARGE if options.all else [])])
    return _judge(table, measured, command, accept=options.accept)


def _names(packages: dict[str, str]) -> str:
    return " and ".join(f"{name} {number}" for name, number in packages.items())


def _judge(
    table: dict[str, dict], measured: dict[str, Figures], command: str, *, accept: bool
) -> int:
    """Tell what changed; give the exit code."""
    found = list(changes(table["programs"], measured))
    sys.stdout.writelines(f"{change}\n" for change in found)
    if accept:
        write_json(TABLE, table | {"programs": table["programs"] | measured})
        sys.stdout.write(f"wrote {TABLE}\n")
        return 0
    if found:
        sys.stdout.write(f"`{command}` accepts this; commit {TABLE.name} with the change\n")
    else:
        sys.stdout.write(f"{len(measured)} programs are within {TOLERANCE:.0%} of {TABLE.name}\n")
    return int(any(change.grew for change in found))


if __name__ == "__main__":
    logging.getLogger("diffussm_jax").setLevel(logging.WARNING)
    try:
        sys.exit(main(sys.argv[1:]))
    except CommandEnd as end:
        sys.stderr.write(f"{end.last_line}\n")
        sys.exit(end.exit_code)
