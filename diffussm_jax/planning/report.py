"""A plan as text for people."""

from collections.abc import Iterator, Sequence

from diffussm_jax.planning.plans import CycleBudget, Plan, SamplerPlan
from diffussm_jax.planning.split_axes import SplitAxes

_SHARES_A_LINE = 4


def report(plan: Plan) -> str:
    """A plan as text for people."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = [
        f"{plan.topology}: {plan.chips} devices, mesh {axes}",
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
    yield f"  does not fit: a chip would need {needed:.1f} of {plan.memory.hbm_gib:.0f} GiB"
    if plan.fits_with:
        options = (f"--config.{name}={x}" for name, x in plan.fits_with.items())
        yield f"  it fits with {' '.join(options)}"


def _report_training(plan: Plan) -> list[str]:
    memory, speed = plan.memory, plan.speed
    assert speed is not None
    traffic = (f"{kind} {size:.2f}" for kind, size in speed.collective_gb.items())
    hours = speed.chip_hours / plan.chips
    parameters, ema, optimizer = memory.parameters_gib, memory.ema_gib, memory.optimizer_gib
    work = f"{plan.multiply_adds / 1e9:.2f} G multiply-adds an image"
    objective = []
    if plan.plain_step_ms:
        times = speed.step_ms / plan.plain_step_ms
        objective = [f"    {times:.2f} times the plain objective's {plan.plain_step_ms:.0f} ms"]
    waiting = "of which what the products do not hide comes on top"
    return [
        f"  fits: {memory.total_gib:.1f} of {memory.hbm_gib:.0f} GiB a chip",
        f"    parameters {parameters:.2f}, EMA {ema:.2f}, optimizer {optimizer:.2f}",
        f"    activations, gradients and other temporary arrays {memory.temporary_gib:.2f}",
        f"  estimate: {speed.cycles.million_cycles:.0f}M cycles, {speed.step_ms:.0f} ms a step",
        *_report_cycles(speed.cycles),
        *objective,
        f"    {speed.images_per_second:,.0f} images/s, MFU {speed.mfu:.1%}",
        f"    {plan.num_steps:,} steps: {hours:,.1f} hours, {speed.chip_hours:,.0f} chip-hours",
        f"  {work} (forward, without the SSM operator)",
        f"  collectives, GB a chip and step: {', '.join(traffic) or 'none'}",
        f"    {speed.collective_ms:.0f} ms of the links, {waiting}",
        f"  compiled in {plan.compile_seconds:.0f} s",
    ]


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
    speed = f"{plan.images_per_second:.1f} images/s before decoding"
    return [f"{what} {plan.step_ms:.1f} ms a step", f"    {speed}, {plan.total_gib:.1f} GiB a chip"]
