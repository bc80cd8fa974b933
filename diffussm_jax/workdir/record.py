"""What a checkpoint holds besides arrays: where a run is, and what made it."""

import dataclasses
from importlib.metadata import version
from typing import Any

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint")  # that are recorded
Record = dict[str, Any]


def describe(
    config: Config,
    step: int,
    eval_losses: dict[str, float] | None = None,
    unreported: list[dict[str, float]] | None = None,
) -> Record:
    """The record of a run at a step.

    Args:
        eval_losses: of this very step, if it was evaluated.
        unreported: metrics of the last steps, where they are not yet in the log.
    """
    return {
        "step": step,
        "seed": config.seed,
        "examples": step * config.training.batch_size,  # read of the seed's order
        "eval_loss": (eval_losses or {}).get("eval_loss"),
        "unreported": unreported or [],
        "config": dataclasses.asdict(config),
        "versions": {name: version(name) for name in VERSIONS},
    }


def require_same_position(record: Record, config: Config) -> None:
    """Raise UserError unless the config's data go on where those of a checkpoint ended."""
    now = describe(config, record["step"])
    for name in ("seed", "examples"):
        if record[name] != now[name]:
            raise UserError(
                f"the checkpoint of step {record['step']} has {name} {record[name]}, this config {now[name]}: its data "
                "would not go on where they ended; use the config of the run"
            )
