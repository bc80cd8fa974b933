"""What a student takes over from its teacher: every parameter that has its name and shape.

Not those of a mixer that differs in what no shape shows, as the order of its scan.

Parameters of the blocks are compared layer by layer, as `blocks.3.attention.qkv.kernel`, so that a
teacher and a student may have different patterns of mixers. Those of a model with levels are
compared stage by stage too, as `blocks.1:3.attention.qkv.kernel`.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from diffussm_jax.config import Config, ModelConfig
from diffussm_jax.models.dit import layer_name
from diffussm_jax.models.levels import stage_name
from diffussm_jax.parallel.mesh import LAYERS
from diffussm_jax.training.state import TrainState
from diffussm_jax.workdir.data_facts import read_all_facts
from diffussm_jax.workdir.init_from import Outcome, Verdict, starting_from
from diffussm_jax.workdir.teacher import SHA256, Teacher
from diffussm_jax.workdir.unshown import OF_MIXERS, OF_POSITIONS, OF_STEPS, difference, differences

logger = logging.getLogger(__name__)

# Among the facts of a run's data.json: whether other weights are where its SSMs begin.
TAKES_SSM = "ssm_from_other_weights"

# The last layers of a mixer (delta_conv adds a `mean`), and of a block of DiffuSSM, which is a
# mixer as a whole.
_LAST_LAYER = re.compile(rf"({LAYERS}\.[\d:]+\.(?:\w+\.)?)(?:out|mean|w3)\.(?:kernel|bias)")

_OF_A_MODULE = re.compile(rf"{LAYERS}\.[\d:]+\.(\w+)\.")


def inherit(model: ModelConfig, state: TrainState, teacher: Teacher) -> TrainState:
    """Replace parameters and averages of a new state by those of the teacher, where they fit.

    What becomes of each is logged. A mixer that is not the teacher's as a whole starts with an
    output of zero, so that its block is the teacher's without a mixer; all else that is new keeps
    its initial values.

    Args:
        model: the student's.
    """
    verdicts = _compare(model, state.params, teacher)
    _report(verdicts)
    _warn_of_positions(model, teacher.config.model)

    def merge(params: dict, taught: dict) -> dict:
        mine, others = by_layer(model, params), by_layer(teacher.config.model, taught)
        for name, verdict in verdicts.items():
            if verdict.outcome is Outcome.LOADED:
                mine[name] = others[name]
            elif verdict.outcome is Outcome.ADDED:
                mine[name] = jnp.zeros_like(mine[name])
        return stacked(model, mine)

    places = jax.tree.map(lambda x: x.sharding, state.params)
    params = jax.jit(merge, out_shardings=places)(state.params, teacher.params)
    return starting_from(state, params)


def unshown_differences(ours: ModelConfig, theirs: ModelConfig) -> dict[str, str]:
    """Why parameters of a module of a block mean something else there, by the module's name."""
    return differences(ours, theirs, OF_STEPS) | differences(ours, theirs, OF_MIXERS)


def facts_of(config: Config, params: dict, teacher: Teacher | None) -> dict[str, Any]:
    """What a work directory, and an export of it, keeps of the weights that a run begins with.

    Args:
        params: the run's, or their shapes.
    """
    facts: dict[str, Any] = {} if teacher is None else {SHA256: teacher.sha256}
    if config.training.init_from is not None:
        facts[TAKES_SSM] = True
    elif teacher is not None:
        verdicts = _compare(config.model, params, teacher)
        taken = (name for name, x in verdicts.items() if x.outcome is Outcome.LOADED)
        facts[TAKES_SSM] = any(".ssm." in name for name in taken)
    return facts


def began_with_own_ssm(folder: Path, config: Config) -> bool:
    """Whether the state space layers of a run began as its seed has them.

    Args:
        folder: the work directory, or an export, whose config no longer names other weights.
    """
    facts = read_all_facts(folder)
    by_default = config.training.init_from is not None or SHA256 in facts  # of earlier versions
    return not facts.get(TAKES_SSM, by_default)


def _compare(model: ModelConfig, params: dict, teacher: Teacher) -> dict[str, Verdict]:
    """What becomes of each parameter of a student, and of its teacher."""
    taught = teacher.config.model
    ours, theirs = (
        jax.eval_shape(lambda params, c=config: by_layer(c, params), params)
        for config, params in ((model, params), (taught, teacher.params))
    )
    return judge(ours, theirs, unshown_differences(model, taught))


def judge(
    ours: dict[str, Any], theirs: dict[str, Any], unshown: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Verdict]:
    """What becomes of each parameter, by its name in one layer.

    Args:
        unshown: what `unshown_differences` returned; these modules are not taken over.
    """
    verdicts = {}
    for name in ours.keys() | theirs.keys():
        here, there = (list(x[name].shape) if name in x else "missing" for x in (ours, theirs))
        module = _OF_A_MODULE.match(name)
        reason = unshown.get(module[1], "") if module else ""
        if here == there and not reason:
            verdicts[name] = Verdict(Outcome.LOADED)
        elif name not in ours:
            verdicts[name] = Verdict(Outcome.LEFT_OUT)
        elif here == there:
            verdicts[name] = Verdict(Outcome.NEW, reason)
        else:
            reason = "" if name not in theirs else f"{there} there and {here} here"
            verdicts[name] = Verdict(Outcome.NEW, reason)
    for name in ours:
        if last := _LAST_LAYER.fullmatch(name):
            mixer = (x for other, x in verdicts.items() if other.startswith(last[1]))
            if any(x.outcome in (Outcome.NEW, Outcome.ADDED) for x in mixer):
                verdicts[name] = Verdict(Outcome.ADDED)
    return dict(sorted(verdicts.items()))


def by_layer(model: ModelConfig, params: dict) -> dict[str, Any]:
    """Parameters by their dotted names, those of the blocks as `blocks.<layer>.<name>`.

    A layer is a number, or the numbers of a stage and of a layer in it, as 1:3.
    """
    num, named = len(model.pattern), {}
    for name, array in flatten_dict(params, sep=".").items():
        if not name.startswith(f"{LAYERS}."):
            named[name] = array
            continue
        rest, stage, first = name.removeprefix(f"{LAYERS}."), "", 0
        if model.levels is not None:
            place, rest = rest.split(".", 1)
            stage = place.removeprefix("stage_") + ":"
        if num > 1:
            first = next(k for k in range(num) if rest.startswith(f"{layer_name(k)}."))
            rest = rest.removeprefix(f"{layer_name(first)}.")
        for index in range(len(array)):
            named[f"{LAYERS}.{stage}{index * num + first}.{rest}"] = array[index]
    return named


def stacked(model: ModelConfig, named: dict[str, Any]) -> dict:
    """Inverse of `by_layer`."""
    num, others = len(model.pattern), {}
    layers: dict[str, dict[int, Any]] = defaultdict(dict)
    for name, array in named.items():
        if not name.startswith(f"{LAYERS}."):
            others[name] = array
            continue
        _, place, rest = name.split(".", 2)
        *stage, layer = map(int, place.split(":"))
        prefix = [stage_name(index) for index in stage]
        prefix += [layer_name(layer % num)] * (num > 1)
        layers[".".join([LAYERS, *prefix, rest])][layer] = array
    stacks = {name: jnp.stack([x[i] for i in sorted(x)]) for name, x in layers.items()}
    return unflatten_dict(others | stacks, sep=".")


def _warn_of_positions(ours: ModelConfig, theirs: ModelConfig) -> None:
    text = difference(ours, theirs, OF_POSITIONS)
    if text is not None and (ours.has_positions or theirs.has_positions):
        logger.warning("%s: what the layers take over was trained with other positions", text)


def _report(verdicts: dict[str, Verdict]) -> None:
    """Log the verdicts, one line for the layers of a block that share one."""
    layers: dict[tuple[str, Verdict], list[tuple[int, ...]]] = defaultdict(list)
    for name, verdict in verdicts.items():
        parts = name.split(".", 2)
        is_layer = parts[0] == LAYERS
        key = f"{LAYERS}.{parts[2]}" if is_layer else name
        layers[key, verdict] += [tuple(map(int, parts[1].split(":")))] if is_layer else []
    for (name, verdict), numbers in layers.items():
        places = [":".join(map(str, place)) for place in sorted(numbers)]
        of = f", layers {', '.join(places)} (from 0)" if numbers else ""
        logger.info("  %s%s: %s", name, of, verdict)
