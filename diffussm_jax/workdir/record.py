"""What a checkpoint holds besides arrays: where a run is, and what made it."""

import dataclasses
import logging
from importlib.metadata import version
from typing import Any

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError

# Packages that decide which example comes next.
DATA_PACKAGES = ("grain", "tensorflow-datasets")
RECORDED_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", *DATA_PACKAGES)
Record = dict[str, Any]
_NEEDED = ("step", "seed", "examples", "unreported", "versions")

logger = logging.getLogger(__name__)


def make_record(
    config: Config,
    step: int,
    eval_losses: dict[str, float] | None = None,
    unreported: list[dict[str, float]] | None = None,
) -> Record:
    """The record of a run at a step.

    Args:
        eval_losses: losses on the held-out split, if they were measured at this very step.
        unreported: metrics of the last steps, where they are not in the log yet.
    """
    return {
        "step": step,
        "seed": config.seed,
        "examples": step * config.training.batch_size,  # read of the seed's order
        "eval_loss": (eval_losses or {}).get("eval_loss"),
        "unreported": unreported or [],
        "config": dataclasses.asdict(config),
        "versions": {name: version(name) for name in RECORDED_PACKAGES},
    }


def require_complete(record: Any, step: int) -> None:
    """Raise ValueError unless a record has what a run goes on from, and is of this step."""
    missing = [name for name in _NEEDED if name not in record]
    if missing or record["step"] != step:
        raise ValueError(f"its record has {f'no {missing[0]}' if missing else 'another step'}")


def require_same_position(record: Record, config: Config) -> None:
    """Raise UserError unless the config's data go on where those of a checkpoint ended."""
    now = make_record(config, record["step"])
    for name in ("seed", "examples"):
        if record[name] != now[name]:
            raise UserError(
                f"the checkpoint of step {record['step']} has {name} {record[name]}, this config "
                f"{now[name]}: its data would not go on where they ended; use the config of the run"
            )


def warn_of_other_versions(record: Record) -> None:
    """Warn where a checkpoint was made with other versions of the packages that order the data."""
    for name in DATA_PACKAGES:
        now, before = version(name), record["versions"].get(name)  # older records lack it
        if before is not None and before != now:
            logger.warning(
                "the checkpoint of step %d was made with %s %s, and this is %s: from here on the "
                "examples may come in another order",
                record["step"],
                name,
                before,
                now,
            )
