"""`training.init_from`: a run that begins from the weights of another run or of an export."""

import dataclasses
import enum
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from diffussm_jax.config import Config, SampleConfig, parsing
from diffussm_jax.config.drawn import carried_over, side_ratios
from diffussm_jax.errors import UserError
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir.unshown import OF_MIXERS, differences
from diffussm_jax.workdir.weights import Weights, load_weights, naming

logger = logging.getLogger(__name__)

# A model with levels has one at each, as level_1.label.table.
LABEL_TABLE = re.compile(r"(level_\d+\.)?label\.table")
# Embeddings that start at zero: with them a model begins as the one without.
ZERO_EMBEDDINGS = re.compile(r"(level_\d+\.)?(interval|guidance_scale)\..*")


class Outcome(enum.Enum):
    """What becomes of a parameter."""

    LOADED = "loaded"
    ADDED = "added, starts at zero"
    NEW = "starts anew"
    REINITIALISED = "re-initialised"
    LEFT_OUT = "left out"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """The outcome for one parameter, and why it is not loaded."""

    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.outcome.value, self.reason]))


def init_from(
    config: Config, state: TrainState, mesh: Mesh, *, class_names: Sequence[str] | None
) -> TrainState:
    """Replace a new state's parameters and averages by the EMA of `training.init_from`.

    What becomes of each parameter is logged. A label table of other classes keeps its initial
    values, as do embeddings that start at zero, the step and the optimizer.

    Args:
        class_names: classes of the data to train on.

    Raises:
        UserError: there are no such weights, or any other parameter is missing, unknown, of
            another shape, or of a mixer that does something else with it.
    """
    assert config.training.init_from is not None
    with naming("config.training.init_from"):
        weights = load_weights(config.training.init_from, mesh=mesh)
    ours, theirs = (flatten_dict(x, sep=".") for x in (state.params, weights.params))
    has_same_classes = _has_same_classes(class_names, weights)
    verdicts = {
        name: _judge(name, ours, theirs, has_same_classes)
        for name in sorted(ours.keys() | theirs.keys())
    }
    logger.info("from the EMA of step %d of %s:", weights.step, config.training.init_from)
    for name, verdict in verdicts.items():
        logger.info("  %s: %s", name, verdict)
    _require_none_refused(verdicts, config.training.init_from)
    _require_same_meaning(config, weights.config)
    _report_differences(config, weights.config)
    loaded = [name for name, x in verdicts.items() if x.outcome is Outcome.LOADED]
    params = unflatten_dict(ours | {name: theirs[name] for name in loaded}, sep=".")
    return starting_from(state, params)


def starting_from(state: TrainState, params: dict) -> TrainState:
    """A new state that starts from other parameters, and its averages with them."""
    # Each gets buffers of its own, because the train step donates them all.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    averages = tuple(copy(params) for _ in state.averages)
    return dataclasses.replace(state, params=params, ema=copy(params), averages=averages)


def _judge(name: str, ours: dict, theirs: dict, has_same_classes: bool) -> Verdict:
    here, there = (list(x[name].shape) if name in x else "missing" for x in (ours, theirs))
    shapes = f"{there} there and {here} here"
    is_table = LABEL_TABLE.fullmatch(name) is not None
    if here == there and (has_same_classes or not is_table):
        return Verdict(Outcome.LOADED)
    if name not in theirs and ZERO_EMBEDDINGS.fullmatch(name):
        return Verdict(Outcome.ADDED)
    if not is_table or (name in theirs and name in ours and here[1:] != there[1:]):
        return Verdict(Outcome.REFUSED, shapes)
    if name not in ours:
        return Verdict(Outcome.LEFT_OUT, "this model has no classes")
    return Verdict(Outcome.REINITIALISED, f"{shapes}, of other classes")


def _require_none_refused(verdicts: dict[str, Verdict], folder: str) -> None:
    refused = [name for name, x in verdicts.items() if x.outcome is Outcome.REFUSED]
    if refused:
        raise UserError(
            f"config.training.init_from: {folder} has other parameters than this config's model, "
            f"{len(refused)} in all: {refused[0]} is {verdicts[refused[0]].reason}"
        )


def _require_same_meaning(config: Config, theirs: Config) -> None:
    for difference in differences(config.model, theirs.model, OF_MIXERS).values():
        raise UserError(
            f"config.training.init_from: {config.training.init_from} has parameters of these "
            f"shapes that mean something else: {difference}; use its value"
        )


def _has_same_classes(class_names: Sequence[str] | None, weights: Weights) -> bool:
    """Whether labels mean the same; unknown names are taken to be the same."""
    if class_names is None or weights.class_names is None:
        return True
    return list(class_names) == weights.class_names


def _predicted(config: Config) -> tuple[str, str]:
    """What a model predicts, of which path; a mean flow begins as a flow."""
    path = "gaussian process" if config.diffusion.process == "gaussian" else "flow"
    return config.diffusion.prediction, path


def _report_differences(config: Config, theirs: Config) -> None:
    """Log what no shape shows: another diffusion process, and another number of tokens."""
    for field in parsing.field_names(Config):
        here, there = (parsing.get_field(c, field) for c in (config, theirs))
        if field.startswith(("model.", "diffusion.", "guidance.")) and here != there:
            logger.info("%s is %r here and was %r there", field, here, there)
    if _predicted(config) != _predicted(theirs):
        logger.warning(
            "this model predicts %s of a %s and that one %s of a %s: its predictions begin wrong",
            *(word for predicted in map(_predicted, (config, theirs)) for word in predicted),
        )
    _report_size(config, theirs)


def _report_size(config: Config, theirs: Config) -> None:
    """Warn where steps and positions are not those of that model drawing at this size."""
    here, there = config.token_grid, theirs.token_grid
    fitting = carried_over(theirs.model, side_ratios(there, here), SampleConfig())
    fields = ["dt_rate"] * config.model.has_ssm + ["position_scale"] * config.model.has_positions
    options = [
        f"--config.model.{field}={_as_option(getattr(fitting, field))}"
        for field in fields
        if getattr(config.model, field) != getattr(fitting, field)
    ]
    if options:
        logger.warning(
            "this model has %d x %d tokens and that one %d x %d: it begins as that one draws at "
            "this size with %s",
            *(*here, *there),
            " ".join(options),
        )


def _as_option(value: float | tuple[float, float]) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
