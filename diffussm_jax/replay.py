"""`--mode=replay`: run again the step that stopped a run, and say where its first value that is not finite arises."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict

from diffussm_jax.config import Config, parsing
from diffussm_jax.diffusion.gaussian import make_diffusion, training_loss
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_text
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.mesh import LAYERS, make_mesh
from diffussm_jax.training.origin import find_origin
from diffussm_jax.training.state import TrainState, abstract_model, abstract_state
from diffussm_jax.training.step import Drawn, draw
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.dump import Dump, read_newest

logger = logging.getLogger(__name__)

REPORT_FILE = "replay.txt"
MAX_EXAMPLES = 8  # whose losses are listed


def replay(config: Config, workdir: Path) -> None:
    """Report, on the log and in `replay.txt` beside the dump, what is not finite in the last step that stopped the run.

    It runs as the given config says, so that another `model.dtype` or `model.ssm_implementation` can be tried. One device
    takes one example at a time.

    Raises:
        UserError: there is no dump, it is damaged, or it is of another model.
    """
    dump = read_newest(workdir)
    state = _restore(config, dump)
    lines = []
    for line in _report(config, dump, state):
        logger.info("%s", line)
        lines.append(line)
    path = dump.folder / REPORT_FILE
    if is_first():
        write_text(path, "\n".join(lines) + "\n")
    logger.info("wrote %s", path)


def _restore(config: Config, dump: Dump) -> TrainState:
    mesh = make_mesh(devices=jax.local_devices()[:1])
    abstract = abstract_state(dump.config, mesh)
    with Checkpoints(dump.folder, config.checkpoint) as checkpoints:
        saved = checkpoints.restore(abstract)
    if saved is None:
        raise UserError(f"{dump.folder} is damaged: its checkpoint is missing")
    return saved.state


def _report(config: Config, dump: Dump, state: TrainState) -> Iterator[str]:
    yield f"{dump.folder}: {dump.error}"
    yield from _differences(config, dump.config)
    yield from _arrays("parameters", state.params)
    yield from _arrays("EMA", state.ema)
    key = jax.random.fold_in(jax.random.key(dump.config.seed), dump.step - 1)
    batch = jax.tree.map(jnp.asarray, dump.batch)
    drawn = draw(config, key, batch, dump.config.training.label_dropout)
    loss_of = _loss_of_one(config)
    run, bad = jax.jit(jax.value_and_grad(loss_of)), []
    total = jax.tree.map(jnp.zeros_like, state.params)
    for row in range(len(dump.indices)):
        loss, grads = run(state.params, _example(drawn, row))
        total = jax.tree.map(jnp.add, total, grads)
        norm = float(optax.tree.norm(grads))
        if not np.isfinite(float(loss) + norm):
            bad.append((row, float(loss), norm))
    yield from _arrays("gradients", total)
    yield from _examples(dump, drawn, bad)
    if not bad:
        yield (
            "no example's loss or gradient is infinite or NaN when the step runs again here, on "
            f"{jax.devices()[0].device_kind}: the fault is one of the machine, of the arrangement of devices, or of how "
            "this config computes the model"
        )
        return
    row, loss, _ = bad[0]
    function: Callable = jax.grad(loss_of) if np.isfinite(loss) else loss_of
    origin = find_origin(function, state.params, _example(drawn, row))
    where = "the gradient" if np.isfinite(loss) else "the loss"
    yield f"the first such value on the way to {where} of example {dump.indices[row]}: {origin}"


def _loss_of_one(config: Config) -> Callable:
    graphdef, _ = abstract_model(config)
    diffusion = make_diffusion(config.diffusion)

    def loss_of(params: dict, example: Drawn) -> jax.Array:
        model = nnx.merge(graphdef, params)
        return training_loss(diffusion, model, *example)["loss"][0]

    return loss_of


def _example(drawn: Drawn, row: int) -> Drawn:
    return jax.tree.map(lambda x: x[row : row + 1], drawn)


def _differences(config: Config, dumped: Config) -> Iterator[str]:
    """The fields of the model that are not as they were."""
    for field in parsing.field_names(Config):
        ours, theirs = (parsing.get_field(c, field) for c in (config, dumped))
        if field.startswith("model.") and ours != theirs:
            yield f"{field} is {ours!r} here and was {theirs!r}"


def _arrays(title: str, tree: dict) -> Iterator[str]:
    """A line of statistics for each array, layer by layer where some values are not finite."""
    yield f"{title}: name, shape, root mean square, largest magnitude, values that are not finite"
    for name, array in flatten_dict(tree, sep=".").items():
        finite = jnp.isfinite(array)
        kept = jnp.where(finite, array, 0)
        num_bad = int(jnp.sum(~finite))
        rms = float(jnp.sqrt(jnp.mean(jnp.square(kept))))
        line = f"  {name:40} {array.shape!s:20} {rms:10.3g} {float(jnp.max(jnp.abs(kept))):10.3g} {num_bad:8}"
        if num_bad and name.startswith(f"{LAYERS}."):
            layers = np.flatnonzero(np.any(~finite.reshape(len(finite), -1), axis=1))
            line += f"  in layers {', '.join(map(str, layers))} (from 0)"
        yield line


def _examples(dump: Dump, drawn: Drawn, bad: list) -> Iterator[str]:
    _, t, _, labels = drawn
    yield f"{len(bad)} of {len(dump.indices)} examples have a loss or gradient that is not finite"
    for row, loss, norm in bad[:MAX_EXAMPLES]:
        label = "" if labels is None else f", label {int(labels[row])}"
        yield (
            f"  example {dump.indices[row]} of the data, row {row} of the batch, t {int(t[row])}{label}: loss {loss:.4g}, "
            f"gradient norm {norm:.4g}"
        )
