"""Weights to sample or finetune from: those of a run, or of an export."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from diffussm_jax.config import Config
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors
from diffussm_jax.files.paths import as_path
from diffussm_jax.parallel.feed import localize, place, to_host
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.training.state import abstract_model, abstract_state
from diffussm_jax.workdir import ema_snapshots, layout
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.data_facts import read_data_facts
from diffussm_jax.workdir.exports import check_files


class Weights(NamedTuple):
    """Parameters and what is needed to use them; class_names is None without labels."""

    config: Config
    params: dict
    step: int
    class_names: list[str] | None


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Name the field that chose the folder in UserErrors of reading it."""
    try:
        yield
    except UserError as error:
        reason = str(error).removeprefix("--workdir=")
        raise UserError(f"{field}: {reason}") from error


def load_weights(
    folder: str | Path,
    *,
    mesh: Mesh | None = None,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
) -> Weights:
    """Load the weights of a work directory or of an export. Every process must call it.

    Args:
        mesh: devices that get the parameters, perhaps this process's alone; by default the mesh of
            the weights' config.
        step: checkpoint to read; by default the latest.
        ema: whether to take the EMA or the raw parameters.
        ema_length: relative width of an average to make from the run's snapshots instead.

    Raises:
        UserError: there is no run, no such checkpoint, or the files do not fit together.
    """
    folder = as_path(folder)
    read = _read_export if layout.is_export(folder) else _read_run
    if mesh is None or _has_all_devices(mesh):
        weights = read(folder, mesh, step, ema)
    else:
        weights = read(folder, None, step, ema)
        weights = weights._replace(params=localize(weights.params, mesh))
    if ema_length is None:
        return weights
    mesh = make_mesh(weights.config.mesh) if mesh is None else mesh
    average = ema_snapshots.reconstruct(folder, ema_length, step=weights.step)
    return weights._replace(params=place(average, state_shardings(mesh, average)))


def _has_all_devices(mesh: Mesh) -> bool:
    """Whether no other process has devices outside the mesh."""
    return jax.process_count() == 1 or mesh.size == jax.device_count()


def _read_run(folder: Path, mesh: Mesh | None, step: int | None, ema: bool) -> Weights:
    config = layout.read_config(folder)
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    abstract = abstract_state(config, mesh)
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        saved = checkpoints.restore(abstract, step=step)
    if saved is None:
        raise UserError(f"{folder} has no checkpoint yet: train first, or lower checkpoint.every")
    params = saved.state.ema if ema else saved.state.params
    class_names = read_data_facts(folder).class_names
    return Weights(config, params, int(saved.state.step), class_names)


def _read_export(folder: Path, mesh: Mesh | None, step: int | None, ema: bool) -> Weights:
    weights = load_export(folder)
    if step not in (None, weights.step) or not ema:
        raise UserError(
            f"{folder} is an export, which has the EMA weights of step {weights.step} alone: "
            "use its work directory"
        )
    mesh = make_mesh(weights.config.mesh) if mesh is None else mesh
    return weights._replace(params=place(weights.params, state_shardings(mesh, weights.params)))


def load_export(folder: str | Path) -> Weights:
    """Load the weights of an export, float32 on the host.

    Raises:
        UserError: it is missing, unfinished, damaged, or its weights are not those of its config.
    """
    folder = as_path(folder)
    step = check_files(folder)
    config = layout.read_config(folder)
    tensors = read_tensors(folder / layout.WEIGHTS_FILE)
    _, shapes = abstract_model(config)
    require_same_tensors(tensors, flatten_dict(shapes, sep="."), folder / layout.WEIGHTS_FILE)
    params = unflatten_dict(tensors, sep=".")
    return Weights(config, params, step, read_data_facts(folder).class_names)


def params_sha256(params: dict) -> str:
    """SHA-256 of parameters, of their names, shapes and bytes, in hexadecimal.

    Every process that has a part of them must call it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(params, sep=".").items()):
        digest.update(f"{name} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(to_host(leaf)).data)
    return digest.hexdigest()


def require_same_tensors(
    tensors: dict[str, np.ndarray], expected: dict[str, Any], path: Path
) -> None:
    """Raise UserError naming the first tensor of a file that the config's model does not have."""
    for name in sorted(tensors.keys() | expected.keys()):
        ours, theirs = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "missing"
            for x in (expected.get(name), tensors.get(name))
        )
        if ours != theirs:
            raise UserError(
                f"{path} is of another model: {name} is {theirs} there and {ours} in the model of "
                "its config; use the version of diffussm_jax that wrote it"
            )
