"""Checkpoints of the whole train state, through Orbax."""

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from diffussm_jax.config import CheckpointConfig
from diffussm_jax.errors import UserError
from diffussm_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def open_checkpoints(workdir: Path, config: CheckpointConfig) -> ocp.CheckpointManager:
    """The checkpoints of a work directory; saving writes in the background."""
    options = ocp.CheckpointManagerOptions(max_to_keep=config.keep)
    return ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(),
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(),  # without it, metadata cannot be read before a restore
    )


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Start writing a checkpoint named by its step, unless that step is already there."""
    step = int(state.step)
    if step not in checkpoints.all_steps():
        checkpoints.save(step, args=ocp.args.StandardSave(state), force=True)


def restore(
    checkpoints: ocp.CheckpointManager,
    abstract_state: TrainState,
    *,
    step: int | None = None,
) -> TrainState | None:
    """The state saved at `step` (the latest by default), placed as `abstract_state` says; None if there is none.

    Raises:
        UserError: there is no such step, or it was saved from another model.
    """
    steps = checkpoints.all_steps()
    if not steps and step is None:
        return None
    step = max(steps) if step is None else step
    if step not in steps:
        raise UserError(
            f"no checkpoint of step {step} in {checkpoints.directory}; it has {sorted(steps)}"
        )
    _require_same_shapes(checkpoints, step, abstract_state)
    return checkpoints.restore(step, args=ocp.args.StandardRestore(abstract_state))


def _require_same_shapes(
    checkpoints: ocp.CheckpointManager, step: int, abstract_state: TrainState
) -> None:
    """Compare parameter by parameter before reading, so that the error can name the first that differs."""
    saved = _shapes(checkpoints.item_metadata(step).tree["params"])
    wanted = _shapes(abstract_state.params)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {checkpoints.directory / str(step)} is of another model: {name} is "
                f"{saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} in this config; "
                "use the config that the run was started with"
            )


def _shapes(params: dict) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        "/".join(key.key for key in path): tuple(leaf.shape) for path, leaf in leaves
    }
