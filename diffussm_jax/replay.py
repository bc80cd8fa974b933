"""`--mode=replay`: run the step that stopped a run again, and find its first non-finite value."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from diffussm_jax.config import Config, parsing
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_text
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.parallel.mesh import LAYERS, make_mesh
from diffussm_jax.training.objective import Frozen, make_objective, noise_batch
from diffussm_jax.training.origin import find_origin
from diffussm_jax.training.state import TrainState, abstract_model, abstract_state
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.dump import Dump, read_newest
from diffussm_jax.workdir.teacher import in_the_loss, open_teacher

logger = logging.getLogger(__name__)

REPORT_FILE = "replay.txt"
MAX_LISTED = 8  # examples whose losses are in the report


class BadExample(NamedTuple):
    """An example whose loss or gradient is not finite, by its row in the batch."""

    row: int
    loss: float
    grad_norm: float


def replay(config: Config, workdir: Path) -> None:
    """Report what is not finite in the last step that stopped the run.

    The report goes to the log and to `replay.txt` beside the dump. The step runs as the given
    config says, so that another `model.dtype` or `model.ssm_implementation` can be tried. One
    device takes one example at a time.

    Raises:
        UserError: there is no dump, it is damaged, or it is of another model.
    """
    dump = read_newest(workdir)
    layout.require_same_model(workdir, config)
    state = _restore(config, dump)
    lines = []
    for line in _report(config, workdir, dump, state):
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


def _report(config: Config, workdir: Path, dump: Dump, state: TrainState) -> Iterator[str]:
    yield f"{dump.folder}: {dump.error}"
    yield from _differences(config, dump.config)
    yield from _arrays("parameters", state.params)
    yield from _arrays("EMA", state.ema)
    key = jax.random.fold_in(jax.random.key(dump.config.seed), dump.step - 1)
    batch = jax.tree.map(jnp.asarray, dump.batch)
    noised = noise_batch(config, key, batch, dump.config.training.label_dropout)
    loss_of = _loss_of_one(config, workdir, state)
    grads, bad = _sum_gradients(loss_of, state.params, noised)
    yield from _arrays("gradients", grads)
    yield from _examples(dump, noised, bad)
    if not bad:
        yield (
            "no example's loss or gradient is infinite or NaN when the step runs again here, on "
            f"{jax.devices()[0].device_kind}: the fault is one of the machine, of the arrangement "
            "of devices, or of how this config computes the model"
        )
        return
    row, loss, _ = bad[0]
    is_forward = not np.isfinite(loss)
    function: Callable = loss_of if is_forward else jax.grad(loss_of)
    origin = find_origin(function, state.params, _example(noised, row))
    where = "the loss" if is_forward else "the gradient"
    yield f"the first such value on the way to {where} of example {dump.indices[row]}: {origin}"


def _loss_of_one(
    config: Config, workdir: Path, state: TrainState
) -> Callable[[dict, NoisedBatch], jax.Array]:
    """The loss of a batch of one example, as a function of the parameters."""
    graphdef, _ = abstract_model(config, stack="xla")  # an origin is one of its operations
    mesh = make_mesh(devices=jax.local_devices()[:1])
    teacher, teacher_params = in_the_loss(config, open_teacher(config, mesh, workdir))
    objective = make_objective(config, graphdef, teacher)
    frozen = Frozen(state.ema, teacher_params)

    def loss_of(params: dict, example: NoisedBatch) -> jax.Array:
        return objective(params, frozen, example, state.step)["loss"][0]

    return loss_of


def _sum_gradients(
    loss_of: Callable, params: dict, batch: NoisedBatch
) -> tuple[dict, list[BadExample]]:
    """The sum of the examples' gradients, and the examples that are not finite."""
    run, bad = jax.jit(jax.value_and_grad(loss_of)), []
    total = jax.tree.map(jnp.zeros_like, params)
    for row in range(len(batch.t)):
        loss, grads = run(params, _example(batch, row))
        total = jax.tree.map(jnp.add, total, grads)
        norm = float(optax.tree.norm(grads))
        if not np.isfinite(float(loss) + norm):
            bad.append(BadExample(row, float(loss), norm))
    return total, bad


def _example(batch: NoisedBatch, row: int) -> NoisedBatch:
    return jax.tree.map(lambda x: x[row : row + 1], batch)


def _differences(config: Config, dumped: Config) -> Iterator[str]:
    """Name the fields of the model that differ from the run's."""
    for field in parsing.field_names(Config):
        ours, theirs = (parsing.get_field(c, field) for c in (config, dumped))
        if field.startswith("model.") and ours != theirs:
            yield f"{field} is {ours!r} here and was {theirs!r}"


def _arrays(title: str, tree: dict) -> Iterator[str]:
    """A line of statistics for each array, layer by layer where some values are not finite."""
    yield f"{title}: name, shape, root mean square, largest magnitude, values that are not finite"
    for name, array in flatten_dict(tree, sep=".").items():
        finite = jnp.isfinite(array)
        values = jnp.where(finite, array, 0)
        num_bad = int(jnp.sum(~finite))
        rms = float(jnp.sqrt(jnp.mean(jnp.square(values))))
        largest = float(jnp.max(jnp.abs(values)))
        line = f"  {name:40} {array.shape!s:20} {rms:10.3g} {largest:10.3g} {num_bad:8}"
        if num_bad and name.startswith(f"{LAYERS}."):
            layers = np.flatnonzero(np.any(~finite.reshape(len(finite), -1), axis=1))
            line += f"  in layers {', '.join(map(str, layers))} (from 0)"
        yield line


def _examples(dump: Dump, batch: NoisedBatch, bad: list[BadExample]) -> Iterator[str]:
    yield f"{len(bad)} of {len(dump.indices)} examples have a loss or gradient that is not finite"
    for row, loss, norm in bad[:MAX_LISTED]:
        label = "" if batch.y is None else f", label {int(batch.y[row])}"
        yield (
            f"  example {dump.indices[row]} of the data, row {row} of the batch, "
            f"t {batch.t[row].tolist()}{label}: loss {loss:.4g}, gradient norm {norm:.4g}"
        )
