"""How far a student's network is from its teacher's: in their outputs and residual streams.

Streams are compared as FitNets does (Romero et al. 2015, arXiv 1412.6550). With teacher forcing
each block of the student gets what the teacher's block gets, so that errors do not add up. In a U
the stream of a stage has its own grid and width, and is compared with that of the teacher's stage.
"""

from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffussm_jax.config import DistillConfig
from diffussm_jax.diffusion.guidance import with_scale
from diffussm_jax.diffusion.process import NoisedBatch, PerExample, Process, mean_square
from diffussm_jax.models.backbone import Backbone, Stack
from diffussm_jax.shapes import Condition, Conditions, Groups, Images, Labels, Streams

Terms = dict[str, PerExample]
Output = Float[Array, "b h w o"]
StreamsOfStacks = dict[int, Streams]  # by the number of a stack's first layer


def compare(
    config: DistillConfig,
    process: Process,
    student: Backbone,
    teacher: Backbone,
    batch: NoisedBatch,
) -> tuple[Output, Terms]:
    """Run both networks on the noised images.

    Returns:
        The student's output, and the distance of each example: `distill_output` of the outputs and,
        where `features` has a weight, `distill_features` of the streams.
    """
    x_t, t = process.x_t(batch.x0, batch.t, batch.eps), process.conditions(batch.t)
    if batch.scale is not None:
        t = with_scale(t, batch.scale)
    if not config.features:
        output, target = (network(x_t, t, batch.y) for network in (student, teacher))
        return output, {"distill_output": mean_square(output - target)}
    numbers = config.blocks or range(1, teacher.config.num_layers + 1)
    target, theirs = run(teacher, x_t, t, batch.y, numbers)
    output, ours = run(
        student, x_t, t, batch.y, numbers, theirs if config.teacher_forcing else None
    )
    return output, {
        "distill_output": mean_square(output - target),
        "distill_features": relative_error(ours, theirs, numbers),
    }


def weighted(config: DistillConfig, terms: Terms) -> PerExample:
    """What the terms add to the loss."""
    loss = config.output * terms["distill_output"]
    if config.features:
        loss = loss + config.features * terms["distill_features"]
    return loss


def run(
    network: Backbone,
    x_t: Images,
    t: Conditions,
    y: Labels | None,
    numbers: Collection[int],
    forced: StreamsOfStacks | None = None,
) -> tuple[Output, StreamsOfStacks]:
    """The output of a network and its streams: before the first block of a stack, and after each.

    Args:
        numbers: blocks from 1; stacks with none of them leave no stream.
        forced: the streams of another network, whose blocks' inputs each block is applied to.
    """
    streams: StreamsOfStacks = {}

    def run_stack(stack: Stack, x: Groups, c: Condition) -> Groups:
        if not any(number - 1 in stack.numbers for number in numbers):
            return network.run_stack(stack, x, c)
        given = None if forced is None else forced[stack.first][:-1]
        last, after = network.run_with_streams(stack, x, c, given)
        streams[stack.first] = jnp.concatenate([x[None], after])
        return last

    return network.call_with(run_stack, x_t, t, y), streams


def relative_error(
    ours: StreamsOfStacks, theirs: StreamsOfStacks, numbers: Collection[int]
) -> PerExample:
    """|ours - theirs|^2 / |theirs|^2 of an example's streams, as a mean over those of `numbers`.

    The stream grows with the depth; of each block the error counts alike.
    """
    errors = []
    for first, streams in theirs.items():
        chosen = np.array([k - first for k in numbers if 0 < k - first < len(streams)])
        pair = (x[chosen].astype(jnp.float32) for x in (ours[first], streams))
        errors.append(_relative_error(*pair))
    return jnp.mean(jnp.concatenate(errors), axis=0)


def _relative_error(ours: Streams, theirs: Streams) -> Float[Array, "_ b"]:
    error, scale = (jnp.mean(jnp.square(x), axis=(2, 3)) for x in (ours - theirs, theirs))
    return error / scale
