"""`plan.search`: the mesh, recomputation and microbatches with which a run takes the least time.

The compiler needs minutes for a large model, so a candidate is compiled only where it may fit, by
what others took, and may be wanted. Candidates come in an order that tells early what cannot fit:
those that save most memory first, and microbatches only where nothing fits without.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator

from diffussm_jax.config import Config, MeshConfig
from diffussm_jax.config.parsing import with_fields
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import AXES, axis_sizes
from diffussm_jax.planning.estimate import chip_and_mesh, estimate, state_gib
from diffussm_jax.planning.plans import Plan
from diffussm_jax.planning.trials import Trial

logger = logging.getLogger(__name__)

# From the one that recomputes, and saves, most.
_REMAT = ("full", "dots", "none")
# Memory grows linearly with the examples that a chip has at once, but for what a compiler decides.
_FIT_MARGIN = 1.05


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What a search chooses of a config."""

    data: int
    fsdp: int
    sequence: int
    remat: str
    batch_size: int
    num_microbatches: int

    @property
    def rows(self) -> float:
        """The examples that a row of the mesh has at once."""
        return self.batch_size / (self.data * self.fsdp * self.num_microbatches)

    def needs_as_much_as(self, other: "Candidate") -> bool:
        """Whether it certainly takes no less memory than another of the same topology."""
        return (
            self.sequence == other.sequence
            and self.fsdp <= other.fsdp
            and self.rows >= other.rows
            and _REMAT.index(self.remat) >= _REMAT.index(other.remat)
            # Several microbatches add their gradients up in an array more.
            and (self.num_microbatches > 1) >= (other.num_microbatches > 1)
        )

    def is_like(self, other: "Candidate") -> bool:
        """Whether it differs from another in its batch alone."""
        mine, others = (
            dataclasses.replace(x, batch_size=1, num_microbatches=1) for x in (self, other)
        )
        return mine == others

    def applied_to(self, config: Config) -> Config:
        """The config with this candidate's choices."""
        changes = {f"mesh.{axis}": getattr(self, axis) for axis in AXES} | {
            "model.remat": self.remat,
            "training.batch_size": self.batch_size,
            "training.num_microbatches": self.num_microbatches,
        }
        return with_fields(config, changes)

    def __str__(self) -> str:
        return (
            f"data {self.data} x fsdp {self.fsdp} x sequence {self.sequence}, remat {self.remat}, "
            f"batch {self.batch_size} in {self.num_microbatches} part(s)"
        )


def num_devices(config: Config, topology: str) -> int:
    """The devices that a search on a topology splits.

    Raises:
        UserError: the topology is unknown, or no mesh divides both it and the batch.
    """
    widest = {"training.batch_size": max(_batch_sizes(config)), "training.num_microbatches": 1}
    mesh = MeshConfig(sequence=max(1, config.mesh.sequence))
    return chip_and_mesh(with_fields(config, widest | {"mesh": mesh}), topology)[1].size


def search(config: Config, topology: str) -> list[Trial]:
    """Plan what the config says, if its mesh fills the topology, and what may be better."""
    devices = num_devices(config, topology)
    return Search(config, topology, devices, plan=estimate, state_gib=state_gib).run()


def _batch_sizes(config: Config) -> tuple[int, ...]:
    return config.plan.search_batch_sizes or (config.training.batch_size,)


class Search:
    """A search on one topology.

    Args:
        plan: plans a config on a topology.
        state_gib: the memory of a chip that parameters, EMA and optimizer take.

    Attributes:
        left_out: what was not planned because it needs too much memory: so much at least, in GiB.
    """

    def __init__(
        self,
        config: Config,
        topology: str,
        num_devices: int,
        *,
        plan: Callable[[Config, str], Plan],
        state_gib: Callable[[Config, str], float],
    ):
        self._config, self._topology, self._num_devices = config, topology, num_devices
        self._plan, self._state_gib = plan, state_gib
        self._configured = self._as_configured()
        self._trials: dict[Candidate, Trial] = {}
        self.left_out: dict[Candidate, float] = {}

    def run(self) -> list[Trial]:
        """All candidates that were planned, in their order."""
        if self._configured:
            self._try(self._configured)
        for batch_size in sorted(_batch_sizes(self._config)):
            num_microbatches, some_fit = 1, False
            while not some_fit and num_microbatches <= batch_size:
                some_fit = self._try_meshes(batch_size, num_microbatches)
                num_microbatches *= 2
        return list(self._trials.values())

    def _as_configured(self) -> Candidate | None:
        """What the config says; None where its mesh does not fill the topology."""
        config, training = self._config, self._config.training
        try:
            data, fsdp, sequence = axis_sizes(config.mesh, self._num_devices)
        except UserError as error:
            logger.info("not compared with the config as it is: %s", error)
            return None
        remat, num_microbatches = config.model.remat, training.num_microbatches
        candidate = Candidate(data, fsdp, sequence, remat, training.batch_size, num_microbatches)
        return candidate if candidate.rows.is_integer() else None

    def _try_meshes(self, batch_size: int, num_microbatches: int) -> bool:
        """Try all splits of the mesh; give whether some candidate fits."""
        fits = []
        for data, fsdp, sequence in self._meshes():
            like = Candidate(data, fsdp, sequence, "dots", batch_size, num_microbatches)
            if not like.rows.is_integer():
                continue
            if dots := self._try(like):
                fits += [dots, self._try(dataclasses.replace(like, remat="none"))]
            else:
                fits.append(self._try(dataclasses.replace(like, remat="full")))
        return any(fits)

    def _meshes(self) -> Iterator[tuple[int, int, int]]:
        """Yield the splits of the devices, those with the most fsdp first."""
        sequence, num_slices = max(1, self._config.mesh.sequence), self._config.plan.num_slices
        rows = self._num_devices // sequence
        for fsdp in range(rows // num_slices, 0, -1):
            if rows % (fsdp * num_slices) == 0:
                yield rows // fsdp, fsdp, sequence

    def _try(self, candidate: Candidate) -> bool:
        """Plan a candidate unless it cannot fit; give whether it does."""
        if candidate in self._trials:
            return self._trials[candidate].plan.fits
        config = candidate.applied_to(self._config)
        least, room = self._least_gib(candidate), self._room
        if least < room:
            least = max(least, self._state_gib(config, self._topology))
        if least >= room:
            self.left_out[candidate] = least
            logger.info("%s: left out, needs at least %.1f GiB", candidate, least)
            return False
        training = self._config.training
        trial = Trial(
            plan=self._plan(config, self._topology),
            num_images=training.num_steps * training.batch_size,
            is_configured=candidate == self._configured,
        )
        self._trials[candidate] = trial
        speed = f"{trial.images_per_second:,.0f} images/s" if trial.plan.fits else "does not fit"
        logger.info("%s: %.1f GiB, %s", candidate, trial.gib, speed)
        return trial.plan.fits

    @property
    def _room(self) -> float:
        """The memory of a chip, as soon as a plan has told it."""
        return min((x.plan.memory.hbm_gib for x in self._trials.values()), default=float("inf"))

    def _least_gib(self, candidate: Candidate) -> float:
        """The memory that a candidate needs at least, by what others do."""
        least = [0.0]
        for other, trial in self._trials.items():
            memory = trial.plan.memory
            state = memory.parameters_gib + memory.ema_gib + memory.optimizer_gib
            if candidate.needs_as_much_as(other):
                least.append(trial.gib)
            elif candidate.is_like(other) and self._is_part_of(candidate, other):
                # No more than what is not the state shrinks with the rows.
                least.append(state + (trial.gib - state) * candidate.rows / other.rows)
        return max(*least, self._extrapolated_gib(candidate))

    @staticmethod
    def _is_part_of(candidate: Candidate, other: Candidate) -> bool:
        """Whether a candidate has fewer rows, and the sums of gradients that the other has."""
        has_sums, other_has_sums = candidate.num_microbatches > 1, other.num_microbatches > 1
        return candidate.rows <= other.rows and has_sums >= other_has_sums

    def _extrapolated_gib(self, candidate: Candidate) -> float:
        """The memory by a line through the two largest batches that differ in nothing else."""
        points = sorted(
            (other.rows, trial.gib)
            for other, trial in self._trials.items()
            if other.is_like(candidate) and other.num_microbatches == candidate.num_microbatches
        )
        if len(points) < 2 or candidate.rows <= points[-1][0]:
            return 0.0
        (rows, gib), (more_rows, more_gib) = points[-2:]
        slope = (more_gib - gib) / (more_rows - rows)
        return (more_gib + slope * (candidate.rows - more_rows)) / _FIT_MARGIN
