"""How far a student's network is from its teacher's: in their outputs and residual streams.

Streams are compared as FitNets does (Romero et al. 2015, arXiv 1412.6550). With teacher forcing
each block of the student gets what the teacher's block gets, so that errors do not add up.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffussm_jax.config import DistillConfig
from diffussm_jax.diffusion.guidance import with_scale
from diffussm_jax.diffusion.process import NoisedBatch, PerExample, Process, mean_square
from diffussm_jax.models.backbone import Backbone, Isotropic
from diffussm_jax.shapes import Conditions, Images, Labels, Streams

Terms = dict[str, PerExample]
Output = Float[Array, "b h w o"]


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
    assert isinstance(student, Isotropic) and isinstance(teacher, Isotropic)
    target, theirs = run(teacher, x_t, t, batch.y)
    forced = theirs[:-1] if config.teacher_forcing else None
    output, ours = run(student, x_t, t, batch.y, forced)
    numbers = config.blocks or range(1, len(theirs))
    return output, {
        "distill_output": mean_square(output - target),
        "distill_features": relative_error(ours, theirs, np.array(numbers)),
    }


def weighted(config: DistillConfig, terms: Terms) -> PerExample:
    """What the terms add to the loss."""
    loss = config.output * terms["distill_output"]
    if config.features:
        loss = loss + config.features * terms["distill_features"]
    return loss


def run(
    network: Isotropic, x_t: Images, t: Conditions, y: Labels | None, forced: Streams | None = None
) -> tuple[Output, Streams]:
    """The output of a network and its stream: before the first block, and after each."""
    x, c = network.enter(x_t, t, y)
    last, streams = network.run_with_streams(x, c, network.token_grid(x_t), forced)
    output = network.leave(last, c, *x_t.shape[1:3])
    return output, jnp.concatenate([x[None], streams])


def relative_error(ours: Streams, theirs: Streams, numbers: np.ndarray) -> PerExample:
    """|ours - theirs|^2 / |theirs|^2 of an example's streams, as a mean over those of `numbers`.

    The stream grows with the depth; of each block the error counts alike.
    """
    ours, theirs = (x[numbers].astype(jnp.float32) for x in (ours, theirs))
    error, scale = (jnp.mean(jnp.square(x), axis=(2, 3)) for x in (ours - theirs, theirs))
    return jnp.mean(error / scale, axis=0)
