"""Planned settings, and which of them a user may want: those that no other one beats."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from diffussm_jax.planning.plans import Plan

COLUMNS = (
    "topology",
    "mesh",
    "remat",
    "batch",
    "parts",
    "GiB",
    "of",
    "step, ms",
    "links, ms",
    "images/s",
    "chip-hours",
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A plan as one of several to choose from.

    Attributes:
        num_images: that the run trains on, whatever the batch.
        is_configured: whether the config is so already.
    """

    plan: Plan
    num_images: int
    is_configured: bool = False

    @property
    def gib(self) -> float:
        """The memory of a chip that the plan takes, or would take."""
        memory = self.plan.memory
        return memory.total_gib or memory.needed_gib or 0.0

    @property
    def link_ms(self) -> float:
        """Time of the links; where the mesh splits an axis of the chips, of its slowest axis."""
        split, known = self.plan.split_axes, self.plan.speed or self.plan.bound
        slowdown = max(split.slowdown.values(), default=1.0) if split else 1.0
        return slowdown * known.collective_ms if known else 0.0

    @property
    def images_per_second(self) -> float:
        """The speed where products hide nothing of the links; 0 where the plan does not fit.

        On GPUs it is by the bound of a step.
        """
        if not self.plan.fits:
            return 0.0
        return 1e3 * self.plan.batch_size / (self.plan.step_ms + self.link_ms)

    @property
    def chip_hours(self) -> float:
        """What the run takes to its last image."""
        return self.num_images / self.images_per_second * self.plan.chips / 3600

    @property
    def flags(self) -> list[str]:
        """The options that make a run of this plan."""
        plan = self.plan
        options = {f"mesh.{axis}": size for axis, size in plan.mesh.items()} | {
            "model.remat": plan.remat,
            "training.batch_size": plan.batch_size,
            "training.num_microbatches": plan.num_microbatches,
        }
        return [f"--config.{name}={value}" for name, value in options.items()]

    def to_dict(self) -> dict[str, Any]:
        """What search.json has of it."""
        return {
            "topology": self.plan.topology,
            "flags": self.flags,
            "is_configured": self.is_configured,
            "fits": self.plan.fits,
            "gib": self.gib,
            "hbm_gib": self.plan.memory.hbm_gib,
            "step_ms": self.plan.step_ms,
            "link_ms": self.link_ms,
            "images_per_second": self.images_per_second,
            "chip_hours": self.chip_hours if self.plan.fits else 0.0,
        }


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that fit and that none other beats, the fastest first.

    One beats another if it is no worse in images/s, chip-hours and GiB, and better in one of them;
    of equal ones the first stays.
    """
    scores: dict[tuple[float, ...], Trial] = {}
    for trial in trials:
        if trial.plan.fits:
            score = (-trial.images_per_second, trial.chip_hours, trial.gib)
            scores.setdefault(score, trial)
    best = [
        score
        for score in scores
        if not any(x != score and all(map(float.__le__, x, score)) for x in scores)
    ]
    return [scores[score] for score in sorted(best)]


def best_of_each(trials: Sequence[Trial]) -> list[Trial]:
    """Of each topology on which anything fits, the trial with the fewest chip-hours."""
    fitting = [trial for trial in trials if trial.plan.fits]
    topologies = dict.fromkeys(trial.plan.topology for trial in fitting)
    return [
        min((x for x in fitting if x.plan.topology == topology), key=lambda x: x.chip_hours)
        for topology in topologies
    ]


def describe(trials: Sequence[Trial]) -> str:
    """The outcome of a search as text for people."""
    undominated, best = front(trials), best_of_each(trials)
    if not best:
        return "nothing fits"
    configured = [x for x in trials if x.is_configured and x.plan.fits and x not in undominated]
    head = "settings that none beats in images/s, chip-hours and GiB (* as configured):"
    flags = (f"the best for {x.plan.topology}: {' '.join(x.flags)}" for x in best)
    return "\n".join([head, table([*undominated, *configured]), *flags])


def table(trials: Sequence[Trial]) -> str:
    """Trials as a table for a terminal; a star marks what the config says."""
    rows = [COLUMNS, *map(_row, trials)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)
    return "\n".join(lines)


def _row(trial: Trial) -> tuple[str, ...]:
    plan = trial.plan
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1)
    return (
        f"{plan.topology}{' *' if trial.is_configured else ''}",
        mesh or "1 device",
        plan.remat,
        f"{plan.batch_size}",
        f"{plan.num_microbatches}",
        f"{trial.gib:.1f}",
        f"{plan.memory.hbm_gib:.0f}",
        f"{plan.step_ms:.1f}",
        f"{trial.link_ms:.1f}",
        f"{trial.images_per_second:,.0f}",
        f"{trial.chip_hours:,.0f}",
    )
