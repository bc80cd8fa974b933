"""A plan: what a compiler says of a config on one slice of TPUs or on the GPUs of one host."""

import dataclasses
from typing import Any

from diffussm_jax.planning.split_axes import SplitAxes

# The fields of plan.json, in their order: of a plan for TPUs, and of one for GPUs.
FIELDS = (
    "topology",
    "chips",
    "mesh",
    "split_axes",
    "num_steps",
    "batch_size",
    "remat",
    "stack",
    "num_microbatches",
    "fits",
    "hbm_gib",
    "multiply_adds",
    "parameters_gib",
    "ema_gib",
    "optimizer_gib",
    "teacher_gib",
    "needed_gib",
    "fits_with",
    "temporary_gib",
    "total_gib",
    "million_cycles",
    "xla_million_cycles",
    "waiting_million_cycles",
    "kernels",
    "step_ms",
    "plain_step_ms",
    "images_per_second",
    "mfu",
    "chip_hours",
    "hbm_gb",
    "collective_gb",
    "collective_ms",
    "compile_seconds",
    "sampler",
)
GPU_FIELDS = (
    *(name for name in FIELDS[: FIELDS.index("million_cycles")] if name != "split_axes"),
    *("card_gib", "bound", "plain_step_ms", "compile_seconds", "sampler"),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of one chip in a train step, in GiB.

    Attributes:
        hbm_gib: what a program may take: all of a TPU chip's memory, JAX's part of a GPU's.
        card_gib: all that a GPU has.
        temporary_gib: activations, gradients and other temporary arrays; 0 where the step did not
            compile for lack of memory.
        total_gib: everything at once; 0 where the step did not compile.
        needed_gib: what the compiler said that the step needs when it refused to compile it.
    """

    hbm_gib: float
    parameters_gib: float
    ema_gib: float
    optimizer_gib: float
    teacher_gib: float = 0.0
    card_gib: float | None = None
    temporary_gib: float = 0.0
    total_gib: float = 0.0
    needed_gib: float | None = None


@dataclasses.dataclass(frozen=True)
class KernelUse:
    """What a Pallas kernel takes of a program.

    Attributes:
        calls: in one run of the program.
        million_cycles: of all calls.
        share: of the program's cycles.
    """

    name: str
    calls: int
    million_cycles: float
    share: float


@dataclasses.dataclass(frozen=True)
class CycleBudget:
    """The cycles of one run of a program on each chip, and what takes them.

    Attributes:
        million_cycles: all of them.
        xla_million_cycles: of XLA's own operations.
        waiting_million_cycles: in which kernels wait for the first blocks that they read, complete
            weights among them, and for the last ones that they write.
        kernels: the others, the kernel with the most of them first.
        hbm_gb: what the program reads and writes in HBM meanwhile, of each array that an operation
            or a kernel takes or gives the part that it needs.
    """

    million_cycles: float
    xla_million_cycles: float
    waiting_million_cycles: float
    kernels: tuple[KernelUse, ...]
    hbm_gb: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a slice trains.

    Attributes:
        cycles: of one step.
        mfu: the share of the chips' peak that the multiply-adds of the dense layers take.
        chip_hours: of all steps of the run, on all chips.
        collective_gb: what arrives at a chip in a step, by kind of collective.
        collective_ms: time of that on the links if nothing waits; it is not in `step_ms`.
    """

    cycles: CycleBudget
    step_ms: float
    images_per_second: float
    mfu: float
    chip_hours: float
    collective_gb: dict[str, float]
    collective_ms: float


@dataclasses.dataclass(frozen=True)
class SamplerSpeed:
    """How fast a slice draws.

    Attributes:
        step_ms: time of one denoising step.
        cycles: of all steps.
    """

    step_ms: float
    images_per_second: float
    cycles: CycleBudget


@dataclasses.dataclass(frozen=True)
class FusionUse:
    """What a fusion moves between a GPU and its memory in one run of a program.

    Attributes:
        source: the line of this package that it comes from, as "models/block.py:83".
        rounds: how often it runs.
        share: of all bytes of the program.
    """

    name: str
    source: str
    rounds: int
    moved_gb: float
    share: float


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a program on GPUs takes at least: each of its fusions at the card's published peaks.

    Attributes:
        step_ms: the least time of a step; without the collectives.
        uncached_step_ms: the same if the card's cache spares its memory nothing.
        memory_share: of `step_ms`, in which the memory is what sets the bound.
        moved_gb: between a card and its memory in a step.
        multiply_adds: of all matrix products that a card computes in a step, recomputed ones too.
        images_per_second: at most.
        chip_hours: at least, of all steps of the run on all cards; None for the sampler.
        collective_gb: what the collectives exchange in a step, by kind.
        collective_ms: time of that on a card's links if nothing waits.
        traffic: the fusions that move the most bytes, the largest first.
    """

    step_ms: float
    uncached_step_ms: float
    memory_share: float
    moved_gb: float
    multiply_adds: int
    images_per_second: float
    chip_hours: float | None
    collective_gb: dict[str, float]
    collective_ms: float
    traffic: tuple[FusionUse, ...]


@dataclasses.dataclass(frozen=True)
class SamplerPlan:
    """What the compiler says of drawing one batch by `config.sample`, decoding excepted.

    Attributes:
        total_gib: memory of one chip; 0 where the sampler did not compile for lack of memory.
        speed: an estimate for TPUs; None where the sampler did not compile, and for GPUs.
        bound: for GPUs.
    """

    sampler: str
    steps: int
    cfg_scale: float
    batch_size: int
    fits: bool = False
    total_gib: float = 0.0
    speed: SamplerSpeed | None = None
    bound: Bound | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as in plan.json: estimates on one level with the rest, a bound on its own."""
        values = dataclasses.asdict(self)
        speed, least = values.pop("speed"), values.pop("bound")
        if least is not None:
            return values | {"bound": least}
        unknown = {"step_ms": 0.0, "images_per_second": 0.0, "cycles": None}
        return values | (speed or unknown)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of training on some chips, and of sampling if that was asked for.

    Attributes:
        stack: the implementation of the blocks, and the reason if it is not the fused one.
        split_axes: None where the mesh takes whole axes of the slice's chips.
        multiply_adds: of an image's forward pass, without the SSM operator.
        speed: an estimate for TPUs; None where the step did not compile for lack of memory, and for
            GPUs.
        bound: for GPUs; with the change `fits_with` if there is one.
        fits_with: the smallest change of the config that makes it fit.
        plain_step_ms: of a step without an average velocity, folded guidance and a teacher; 0 where
            the config has none of them.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    num_steps: int
    batch_size: int
    remat: str
    num_microbatches: int
    multiply_adds: int
    memory: Memory
    stack: str = ""
    split_axes: SplitAxes | None = None
    speed: Speed | None = None
    bound: Bound | None = None
    compile_seconds: float = 0.0
    fits_with: dict[str, Any] | None = None
    plain_step_ms: float = 0.0
    sampler: SamplerPlan | None = None

    @property
    def fits(self) -> bool:
        """Whether a chip has room for the train step."""
        return 0 < self.memory.total_gib < self.memory.hbm_gib

    @property
    def step_ms(self) -> float:
        """The time of a step: its estimate or its bound; 0 where the step did not compile."""
        known = self.speed or self.bound
        return known.step_ms if known else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The plan as in plan.json: on one level, with 0 for what is unknown without a program."""
        nested = dataclasses.asdict(self)
        values: dict[str, Any] = {"fits": self.fits, "collective_gb": {}, "kernels": []}
        values |= nested | nested["memory"]
        if nested["speed"]:
            values |= nested["speed"] | nested["speed"]["cycles"]
        values["sampler"] = self.sampler and self.sampler.to_dict()
        fields = FIELDS if self.memory.card_gib is None else GPU_FIELDS
        return {name: values.get(name, 0.0) for name in fields}
