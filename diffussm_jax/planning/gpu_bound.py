"""The least time of a train step or of sampling on GPUs, from the text of the compiled program."""

from diffussm_jax.planning.gpus import Gpu
from diffussm_jax.planning.hlo import Program
from diffussm_jax.planning.plans import Bound, FusionUse
from diffussm_jax.planning.roofline import Roofline, Work, bound, link_bytes

_LARGEST = 10  # fusions in a plan


def bound_of_a_step(text: str, gpu: Gpu, *, batch_size: int, num_steps: int = 1) -> Bound:
    """The bound of one of the `num_steps` equal steps in which a program makes its images."""
    program = Program(text)
    roofline = bound(
        program, peak_flops=gpu.peak_flops, bandwidth=gpu.bandwidth, cache_bytes=gpu.l2_bytes
    )
    exchanged = {kind: size / 1e9 / num_steps for kind, size in link_bytes(program).items()}
    return Bound(
        step_ms=1e3 * roofline.seconds / num_steps,
        uncached_step_ms=1e3 * roofline.uncached_seconds / num_steps,
        memory_share=roofline.memory_share,
        moved_gb=roofline.num_bytes / 1e9 / num_steps,
        multiply_adds=roofline.multiply_adds // num_steps,
        images_per_second=batch_size / roofline.seconds,
        chip_hours=None,
        collective_gb=exchanged,
        collective_ms=1e12 * sum(exchanged.values()) / gpu.link_bandwidth,
        traffic=tuple(_use_of(work, roofline) for work in roofline.work[:_LARGEST]),
    )


def _use_of(work: Work, roofline: Roofline) -> FusionUse:
    moved = work.rounds * work.num_bytes
    return FusionUse(work.name, work.source, work.rounds, moved / 1e9, moved / roofline.num_bytes)
