"""`training.init_from`: a run that begins from the weights of another one, or of an export."""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from diffussm_jax.config import Config, parsing
from diffussm_jax.errors import UserError
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir.weights import Weights, load_weights

logger = logging.getLogger(__name__)

LABEL_TABLE = "label.table"


def init_from(
    config: Config, state: TrainState, mesh: Mesh, *, class_names: Sequence[str] | None
) -> TrainState:
    """A new state whose parameters and averages are the EMA of `training.init_from`, reported one by one.

    A label table of other classes keeps its initial values. The step and the optimizer begin anew.

    Args:
        class_names: of the data to train on.

    Raises:
        UserError: there are no such weights, or another parameter is missing, unknown or of another shape.
    """
    assert config.training.init_from is not None
    weights = load_weights(config.training.init_from, mesh=mesh)
    ours, theirs = (flatten_dict(state.params, sep="."), flatten_dict(weights.params, sep="."))
    same_classes = _same_classes(class_names, weights)
    verdicts = {
        name: _verdict(name, ours, theirs, same_classes)
        for name in sorted(ours.keys() | theirs.keys())
    }
    logger.info("from the EMA of step %d of %s:", weights.step, config.training.init_from)
    for name, verdict in verdicts.items():
        logger.info("  %s: %s", name, verdict)
    refused = [name for name, verdict in verdicts.items() if verdict.startswith("refused")]
    if refused:
        raise UserError(
            f"config.training.init_from: {config.training.init_from} has other parameters than this config's model, "
            f"{len(refused)} in all: {refused[0]} is {verdicts[refused[0]].removeprefix('refused, ')}"
        )
    _report_differences(config, weights.config)
    taken = {name for name, verdict in verdicts.items() if verdict == "loaded"}
    params = unflatten_dict(ours | {name: theirs[name] for name in taken}, sep=".")
    # Buffers of their own: the train step gives all away.
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    averages = tuple(copy(params) for _ in state.averages)
    return dataclasses.replace(state, params=params, ema=copy(params), averages=averages)


def _verdict(name: str, ours: dict, theirs: dict, same_classes: bool) -> str:
    """What becomes of a parameter, in words; "loaded" and "refused, ..." have a meaning."""
    here, there = (list(x[name].shape) if name in x else "missing" for x in (ours, theirs))
    if here == there and (same_classes or name != LABEL_TABLE):
        return "loaded"
    if name != LABEL_TABLE or (name in theirs and name in ours and here[1:] != there[1:]):
        return f"refused, {there} there and {here} here"
    if name not in ours:
        return "left out, this model has no classes"
    return f"re-initialised, {there} there and {here} here, of other classes"


def _same_classes(class_names: Sequence[str] | None, weights: Weights) -> bool:
    """Whether labels mean the same; names that are not known are taken to be the same."""
    if class_names is None or weights.class_names is None:
        return True
    return list(class_names) == weights.class_names


def _report_differences(config: Config, theirs: Config) -> None:
    """Say what no shape shows: another process, and another number of tokens."""
    for field in parsing.field_names(Config):
        here, there = (parsing.get_field(c, field) for c in (config, theirs))
        if field.startswith(("model.", "diffusion.")) and here != there:
            logger.info("%s is %r here and was %r there", field, here, there)
    ratio = theirs.num_tokens / config.num_tokens
    fitting = theirs.model.dt_rate * ratio
    if config.model.name == "diffussm" and config.model.dt_rate != fitting:
        logger.warning(
            "this model has %g times the tokens: --config.model.dt_rate=%g gives each filter the reach, as a share "
            "of all tokens, that it was trained with; now it is %g",
            *(1 / ratio, fitting, config.model.dt_rate),
        )
