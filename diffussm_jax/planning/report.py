"""A plan as text for people."""

from collections.abc import Iterator, Sequence

from diffussm_jax.planning.plans import Bound, CycleBudget, Memory, Plan, SamplerPlan, Speed
from diffussm_jax.planning.split_axes import SplitAxes

_SHARES_A_LINE = 4
_MOST_OF_A_CARD = 0.95  # the rest is the driver's and the libraries'


def report(plan: Plan) -> str:
    """A plan as text for people."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = [
        f"{plan.topology}: {plan.chips} {'device' if plan.chips == 1 else 'devices'}, mesh {axes}",
        *(_report_split(plan.split_axes) if plan.split_axes else ()),
        f"  batch {plan.batch_size} in {plan.num_microbatches} part(s), remat {plan.remat}",
        f"  blocks by {plan.stack}",
        *(_report_training(plan) if plan.fits else _report_misfit(plan)),
        *(_report_sampler(plan.sampler) if plan.sampler else ()),
    ]
    return "\n".join(rows)


def _report_split(split: SplitAxes) -> Iterator[str]:
    taken = (f"{axis} takes {_times(sizes)}" for axis, sizes in split.layout.items())
    yield f"  splits an axis of the {_times(split.chips)} chips: {', '.join(taken)}"
    slower = [f"{ratio:.3g} over {axis}" for axis, ratio in split.slowdown.items() if ratio > 1]
    yield f"    times as long for collectives as on whole axes: {', '.join(slower) or '1'}"
    if split.unsplit_fsdp:
        yield f"    config.mesh.fsdp={' or '.join(map(str, split.unsplit_fsdp))} splits none"


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _report_misfit(plan: Plan) -> Iterator[str]:
    needed = plan.memory.needed_gib or plan.memory.total_gib
    whose = "a card" if plan.memory.card_gib else "a chip"
    yield f"  does not fit: {whose} would need {needed:.1f} of {_room(plan.memory, of='')}"
    if plan.memory.card_gib and needed < _MOST_OF_A_CARD * plan.memory.card_gib:
        yield f"  it fits with XLA_CLIENT_MEM_FRACTION={_MOST_OF_A_CARD} in the environment"
    if plan.fits_with:
        options = (f"--config.{name}={x}" for name, x in plan.fits_with.items())
        yield f"  it fits with {' '.join(options)}"
        yield from _report_bound(plan.bound, plan) if plan.bound else ()


def _report_training(plan: Plan) -> list[str]:
    memory = plan.memory
    parameters, ema, optimizer = memory.parameters_gib, memory.ema_gib, memory.optimizer_gib
    work = f"{plan.multiply_adds / 1e9:.2f} G multiply-adds an image"
    time = _report_speed(plan.speed, plan) if plan.speed else ()
    least = _report_bound(plan.bound, plan) if plan.bound else ()
    return [
        f"  fits: {memory.total_gib:.1f} of {_room(memory)}",
        f"    parameters {parameters:.2f}, EMA {ema:.2f}, optimizer {optimizer:.2f}"
        + (f", teacher {memory.teacher_gib:.2f}" if memory.teacher_gib else ""),
        f"    activations, gradients and other temporary arrays {memory.temporary_gib:.2f}",
        *time,
        *least,
        f"  {work} (forward, without the SSM operator)",
        f"  compiled in {plan.compile_seconds:.0f} s",
    ]


def _room(memory: Memory, *, of: str = " a chip") -> str:
    """What a program may take: of a GPU, the part of its memory that JAX takes at its start."""
    if not memory.card_gib:
        return f"{memory.hbm_gib:.0f} GiB{of}"
    part = f"{memory.hbm_gib / memory.card_gib:.0%} of a card's {memory.card_gib:.1f}"
    return f"{memory.hbm_gib:.1f} GiB, the {part} that JAX takes"


def _report_speed(speed: Speed, plan: Plan) -> Iterator[str]:
    hours = speed.chip_hours / plan.chips
    yield f"  estimate: {speed.cycles.million_cycles:.0f}M cycles, {speed.step_ms:.0f} ms a step"
    yield from _report_cycles(speed.cycles)
    yield from _report_objective(plan)
    yield f"    {speed.images_per_second:,.0f} images/s, MFU {speed.mfu:.1%}"
    yield f"    {plan.num_steps:,} steps: {hours:,.1f} hours, {speed.chip_hours:,.0f} chip-hours"
    yield f"  read and written in HBM, GB a chip and step: {speed.cycles.hbm_gb:.1f}"
    yield from _report_collectives(speed)


def _report_objective(plan: Plan) -> Iterator[str]:
    if plan.plain_step_ms:
        times = plan.step_ms / plan.plain_step_ms
        yield f"    {times:.2f} times the plain objective's {plan.plain_step_ms:.0f} ms"


def _report_collectives(time: Speed | Bound) -> Iterator[str]:
    traffic = (f"{kind} {size:.2f}" for kind, size in time.collective_gb.items())
    waiting = "what the products do not hide of that is added to the step"
    yield f"  collectives, GB a chip and step: {', '.join(traffic) or 'none'}"
    yield f"    {time.collective_ms:.0f} ms of the links, {waiting}"


def _report_bound(bound: Bound, plan: Plan) -> Iterator[str]:
    """The bound of the compiled program at published peaks, which is no estimate of a run."""
    share = f"{bound.memory_share:.0%} of it memory"
    yield f"  at least {bound.step_ms:.0f} ms a step (bound), {share}"
    yield f"    {bound.uncached_step_ms:.0f} ms if the cache spares the memory nothing"
    yield from _report_objective(plan)
    yield f"    at most {bound.images_per_second:,.0f} images/s"
    hours = bound.chip_hours or 0.0
    each = f"{hours / plan.chips:,.1f} hours, {hours:,.0f} card-hours"
    yield f"    {plan.num_steps:,} steps: at least {each}"
    products = f"{bound.multiply_adds / 1e12:.1f} T multiply-adds"
    yield f"  a card moves {bound.moved_gb:,.0f} GB a step and does {products}; the largest:"
    for fusion in bound.traffic:
        yield (
            f"    {fusion.moved_gb:7.1f} GB {fusion.share:5.1%}  {fusion.source or 'the compiler'}"
            f" ({fusion.name}, {fusion.rounds:,} times)"
        )
    if plan.chips > 1:
        yield from _report_collectives(bound)


def _report_cycles(cycles: CycleBudget) -> Iterator[str]:
    """The share of each part, in lines that fit a terminal."""
    parts = {
        "XLA": cycles.xla_million_cycles,
        "kernels waiting for memory": cycles.waiting_million_cycles,
        **{kernel.name: kernel.million_cycles for kernel in cycles.kernels},
    }
    shares = [f"{name} {part / cycles.million_cycles:.1%}" for name, part in parts.items()]
    for i in range(0, len(shares), _SHARES_A_LINE) if cycles.kernels else ():
        yield f"    {', '.join(shares[i : i + _SHARES_A_LINE])}"


def _report_sampler(plan: SamplerPlan) -> list[str]:
    what = (
        f"  sampling {plan.batch_size} by {plan.steps} steps of {plan.sampler}, "
        f"cfg_scale {plan.cfg_scale:g}:"
    )
    if not plan.fits:
        return [f"{what} does not fit"]
    if (least := plan.bound) is not None:
        share = f"{least.memory_share:.0%} of it memory"
        drawn = f"at most {least.images_per_second:.1f} images/s before decoding"
        return [
            f"{what} at least {least.step_ms:.1f} ms a step (bound), {share}",
            f"    {drawn}, {plan.total_gib:.1f} GiB a card",
        ]
    assert plan.speed is not None
    drawn = f"{plan.speed.images_per_second:.1f} images/s before decoding"
    return [
        f"{what} {plan.speed.step_ms:.1f} ms a step",
        f"    {drawn}, {plan.total_gib:.1f} GiB a chip",
    ]
