"""A plan: what the TPU compiler says of a config on one slice."""

import dataclasses
from typing import Any

from diffussm_jax.planning.split_axes import SplitAxes

# The fields of plan.json, in their order.
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
    "collective_gb",
    "collective_ms",
    "compile_seconds",
    "sampler",
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of one chip in a train step, in GiB.

    Attributes:
        hbm_gib: what the chip has.
        temporary_gib: activations, gradients and other temporary arrays; 0 where the step did not
            compile for lack of memory.
        total_gib: everything at once; 0 where the step did not compile.
        needed_gib: what the compiler said that the step needs when it refused to compile it.
    """

    hbm_gib: float
    parameters_gib: float
    ema_gib: float
    optimizer_gib: float
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
    """

    million_cycles: float
    xla_million_cycles: float
    waiting_million_cycles: float
    kernels: tuple[KernelUse, ...]


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
class SamplerPlan:
    """What the compiler says of drawing one batch by `config.sample`, decoding excepted.

    Attributes:
        total_gib: memory of one chip.
        step_ms: time of one denoising step; like the other estimates it is 0 where the sampler did
            not compile for lack of memory.
        cycles: of all steps; None where the sampler did not compile.
    """

    sampler: str
    steps: int
    cfg_scale: float
    batch_size: int
    fits: bool = False
    total_gib: float = 0.0
    step_ms: float = 0.0
    images_per_second: float = 0.0
    cycles: CycleBudget | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of training on one slice, and of sampling if that was asked for.

    Attributes:
        stack: the implementation of the blocks, and the reason if it is not the fused one.
        split_axes: None where the mesh takes whole axes of the slice's chips.
        multiply_adds: of an image's forward pass, without the SSM operator.
        speed: None where the step did not compile for lack of memory.
        fits_with: the smallest change of the config that makes it fit.
        plain_step_ms: of a step without an average velocity and folded guidance; 0 where the config
            has neither.
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
    compile_seconds: float = 0.0
    fits_with: dict[str, Any] | None = None
    plain_step_ms: float = 0.0
    sampler: SamplerPlan | None = None

    @property
    def fits(self) -> bool:
        """Whether a chip has room for the train step."""
        return self.speed is not None and self.memory.total_gib < self.memory.hbm_gib

    def to_dict(self) -> dict[str, Any]:
        """The plan as in plan.json: on one level, with 0 for what is unknown without a program."""
        nested = dataclasses.asdict(self)
        values: dict[str, Any] = {"fits": self.fits, "collective_gb": {}, "kernels": []}
        values |= nested | nested["memory"]
        if nested["speed"]:
            values |= nested["speed"] | nested["speed"]["cycles"]
        return {name: values.get(name, 0.0) for name in FIELDS}
