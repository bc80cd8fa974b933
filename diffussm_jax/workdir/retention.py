"""Which checkpoints of a run stay on disk."""

from collections.abc import Mapping, Sequence

from diffussm_jax.config import CheckpointConfig


def kept_steps(
    steps: Sequence[int], losses: Mapping[int, float | None], config: CheckpointConfig
) -> set[int]:
    """The newest `keep` steps, every `keep_every`th, and the one of the lowest evaluation loss.

    Args:
        steps: steps of the complete checkpoints, in rising order.
        losses: evaluation loss by step, None where it was not measured; read if `keep_best` is set.
    """
    kept = set(steps[-config.keep :])
    if config.keep_every is not None:
        kept |= {step for step in steps if step % config.keep_every == 0}
    if config.keep_best:
        known = [(loss, step) for step, loss in losses.items() if loss is not None]
        kept |= {step for _, step in sorted(known)[:1]}
    return kept
