"""`--mode=export`: the EMA weights of a run as a folder to keep, publish, sample from and finetune from.

export.json         the step, and the checksums of the files below; written last, so it makes an export whole
model.safetensors   the EMA parameters, float32, named as `blocks.w0.kernel`
config.json         the config of the run, without the paths of the machine it ran on
data.json           the names of the classes, and what the data was made of
README.md           a model card
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from diffussm_jax.config import Config, to_json
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors, sha256_of, write_text
from diffussm_jax.parallel.feed import localize, place
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.training.state import abstract_model, abstract_state
from diffussm_jax.workdir import layout, snapshots
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.model_card import model_card

EXPORT_FILE, WEIGHTS_FILE, CARD_FILE = "export.json", "model.safetensors", "README.md"


FORMAT = 1


# Whose checksums are kept: a model card may be edited.
CHECKED_FILES = (WEIGHTS_FILE, layout.CONFIG_FILE, layout.DATA_FILE)


class Weights(NamedTuple):
    """Parameters and what is needed to use them; class_names is None where the run had no labels."""

    config: Config
    params: dict
    step: int
    class_names: list[str] | None


def load_export(folder: str | Path) -> Weights:
    """The weights of an export, float32 on the host.

    Raises:
        UserError: it is missing, unfinished, damaged, or its weights are not those of its config.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    step = _check_files(folder)
    config = layout.read_config(folder)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    _, shapes = abstract_model(config)
    require_same_tensors(tensors, flatten_dict(shapes, sep="."), folder / WEIGHTS_FILE)
    params = unflatten_dict(tensors, sep=".")
    return Weights(config, params, step, layout.read_data_facts(folder).get("class_names"))


def load_weights(
    folder: str | Path, *, step: int | None = None, ema: bool = True, mesh: Mesh | None = None
) -> Weights:
    """The weights of a work directory, from its latest checkpoint or the one of `step`, or those of an export.

    They are placed on `mesh`, by default that of the config.

    Raises:
        UserError: there is no run, no such checkpoint, or the files do not fit together.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    if is_export(folder):
        weights = load_export(folder)
        if step not in (None, weights.step) or not ema:
            raise UserError(
                f"{folder} is an export, which has the EMA weights of step {weights.step} alone: use its work "
                "directory"
            )
        mesh = make_mesh(weights.config.mesh) if mesh is None else mesh
        return weights._replace(params=place(weights.params, state_shardings(mesh, weights.params)))
    config = layout.read_config(folder)
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    abstract = abstract_state(config, mesh)
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        saved = checkpoints.restore(abstract, step=step)
    if saved is None:
        raise UserError(f"{folder} has no checkpoint yet: train first, or lower checkpoint.every")
    params = saved.state.ema if ema else saved.state.params
    names = layout.read_data_facts(folder).get("class_names")
    return Weights(config, params, int(saved.state.step), names)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, whole or not."""
    return any((folder / name).exists() for name in (EXPORT_FILE, WEIGHTS_FILE))


def write_export(
    folder: Path, config: Config, facts: dict[str, Any], tensors: dict[str, np.ndarray], step: int
) -> None:
    """Write the files of an export; `tensors` have the names of `flat_names`, `facts` are of the data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXPORT_FILE).unlink(missing_ok=True)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors))
    write_text(folder / layout.CONFIG_FILE, to_json(config))
    layout.write_data_facts(folder, facts)
    num_parameters = sum(x.size for x in tensors.values())
    card = model_card(config, facts, step=step, num_parameters=num_parameters)
    write_text(folder / CARD_FILE, card)
    sums = {name: _sha256(folder / name) for name in CHECKED_FILES}
    summary = {"format": FORMAT, "step": step, "sha256": sums}
    write_text(folder / EXPORT_FILE, json.dumps(summary, indent=1) + "\n")


def _check_files(folder: Path) -> int:
    """The step of an export whose files have the checksums that were noted when it was written."""
    path = folder / EXPORT_FILE
    try:
        summary = json.loads(path.read_text())
        version, step, sums = (summary[name] for name in ("format", "step", "sha256"))
        noted = {name: sums[name] for name in CHECKED_FILES}
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no whole export ({EXPORT_FILE} is missing): export again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: export again") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}, this version reads {FORMAT}")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(f"{path} is damaged: step is {step!r}")
    for name, sha256 in noted.items():
        if _sha256(folder / name) != sha256:
            raise UserError(
                f"{folder / name} is not the file that was exported (its sha256 differs): export again"
            )
    return step


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def require_same_tensors(found: dict[str, np.ndarray], wanted: dict[str, Any], path: Path) -> None:
    """Raise UserError naming the first tensor that is not as the config's model has it."""
    for name in sorted(found.keys() | wanted.keys()):
        ours, theirs = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "missing"
            for x in (wanted.get(name), found.get(name))
        )
        if ours != theirs:
            raise UserError(
                f"{path} is of another model: {name} is {theirs} there and {ours} in the model of its config"
            )


def load_on(
    mesh: Mesh,
    folder: Path,
    *,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
) -> Weights:
    """`load_weights` onto a mesh, which may be of this process's devices alone. Every process must call it.

    Args:
        ema_length: relative width of an average to make of the run's snapshots, instead of its EMA.
    """
    if jax.process_count() == 1 or mesh.size == jax.device_count():
        weights = load_weights(folder, step=step, ema=ema, mesh=mesh)
    else:
        weights = load_weights(folder, step=step, ema=ema)
        weights = weights._replace(params=localize(weights.params, mesh))
    if ema_length is None:
        return weights
    average = snapshots.reconstruct(folder, ema_length, step=weights.step)
    return weights._replace(params=place(average, state_shardings(mesh, average)))
