"""Weights to sample or finetune from: those of a run, or of an export.

An export is a folder to keep or publish:

export.json         the step, and the checksums of the files below; written last
model.safetensors   the EMA parameters, float32, named as `blocks.w0.kernel`
config.json         the config of the run, without the paths of the machine it ran on
data.json           the names of the classes, and what the data was made of
README.md           a model card
model.py            where it was asked for: draws from the others with PyTorch alone
web                 likewise: a page that draws in browsers, without the others
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from diffussm_jax.config import Config, to_json
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors, require_only, sha256_of, write_json, write_text
from diffussm_jax.parallel.feed import localize, place, to_host
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.training.state import abstract_model, abstract_state
from diffussm_jax.workdir import ema_snapshots, layout
from diffussm_jax.workdir.checkpoints import Checkpoints
from diffussm_jax.workdir.data_facts import DATA_FILE, read_data_facts, write_data_facts
from diffussm_jax.workdir.lock import held, is_lock
from diffussm_jax.workdir.model_card import model_card

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
NEW_CARD_FILE = "README.new.md"
# Files with a noted checksum: a model card may be edited.
CHECKED_FILES = (layout.WEIGHTS_FILE, layout.CONFIG_FILE, DATA_FILE)
PROGRAMS = (layout.PYTORCH_FILE,)  # that draw from an export in other ways than this one
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ExportSummary:
    """What export.json holds; `sha256` is by the name of the file."""

    format: int
    step: int
    sha256: dict[str, str]


class Weights(NamedTuple):
    """Parameters and what is needed to use them; class_names is None without labels."""

    config: Config
    params: dict
    step: int
    class_names: list[str] | None


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
    folder = Path(folder) if isinstance(folder, str) else folder
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
    folder = Path(folder) if isinstance(folder, str) else folder
    step = _check_files(folder)
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


def require_export_or_new(folder: Path, *, named: str) -> None:
    """Raise UserError if writing an export would put it among anybody else's files."""
    ours = {layout.CONFIG_FILE, *layout.OUTPUTS}
    kept = (".git", "LICENSE") if (folder / layout.EXPORT_FILE).exists() else ()  # of its publisher
    if (folder / layout.EXPORT_FILE).exists() or _has_config(folder):
        ours |= {layout.EXPORT_FILE, CARD_FILE, NEW_CARD_FILE, *CHECKED_FILES, *PROGRAMS, layout.PAGE_FOLDER}
    elif (folder / layout.CONFIG_FILE).exists():
        ours.remove(layout.CONFIG_FILE)  # another program's, which calls its files as this one does

    def is_ours(name: str) -> bool:
        return name.removeprefix(".") in ours or is_lock(name) or name.startswith(kept)

    require_only(folder, is_ours, named=named)


def _has_config(folder: Path) -> bool:
    """Whether a folder has the config of a run, as an unfinished export has."""
    try:
        layout.read_config(folder)
    except UserError:
        return False
    return True


def write_export(
    folder: Path,
    config: Config,
    facts: dict[str, Any],
    tensors: dict[str, np.ndarray],
    step: int,
    programs: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the files of an export, into a new folder or over an earlier one.

    A model card that was edited is kept, and the new one is written beside it.

    Args:
        facts: what data.json says of the data.
        tensors: parameters, float32, named as `blocks.w0.kernel`.
        step: number of updates made.
        programs: the texts of some of PROGRAMS, to lie beside; others of an earlier export go.

    Raises:
        UserError: the folder holds anything else, or another process writes into it.
    """
    named = f"the export's folder {folder}"
    require_export_or_new(folder, named=named)
    with held(folder, named=named):
        _write_files(folder, config, facts, tensors, step, programs)


def _write_files(
    folder: Path,
    config: Config,
    facts: dict[str, Any],
    tensors: dict[str, np.ndarray],
    step: int,
    programs: Mapping[str, str],
) -> None:
    card_path = folder / (NEW_CARD_FILE if _has_edited_card(folder) else CARD_FILE)
    (folder / layout.EXPORT_FILE).unlink(missing_ok=True)
    write_text(folder / layout.CONFIG_FILE, to_json(config))  # first: it tells whose folder it is
    write_data_facts(folder, facts)
    num_parameters = sum(x.size for x in tensors.values())
    known = read_data_facts(folder)
    card = model_card(config, known, step=step, num_parameters=num_parameters)
    write_text(card_path, card)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    (folder / layout.WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors))
    for name in PROGRAMS:
        (folder / name).unlink(missing_ok=True)
        if name in programs:
            write_text(folder / name, programs[name])
    checksums = {name: _checksum(folder / name) for name in CHECKED_FILES}
    checksums[CARD_FILE] = _checksum(card_path)  # to tell later whether it was edited
    summary = ExportSummary(FORMAT, step, checksums)
    write_json(folder / layout.EXPORT_FILE, dataclasses.asdict(summary))
    if card_path.name != CARD_FILE:
        logger.warning("%s was edited and is kept: %s is new", folder / CARD_FILE, card_path)
    if beside := [name for name in layout.OUTPUTS if (folder / name).exists()]:
        logger.warning("%s in %s may be of the weights before", " and ".join(beside), folder)


def _has_edited_card(folder: Path) -> bool:
    """Whether there is a model card that is not the one which was written with the export."""
    if not (folder / CARD_FILE).exists():
        return False
    try:
        noted = read_as(folder / layout.EXPORT_FILE, ExportSummary).sha256.get(CARD_FILE)
    except (FileNotFoundError, UserError):
        return True
    return noted != _checksum(folder / CARD_FILE)


def _check_files(folder: Path) -> int:
    """Raise UserError unless the files have the checksums in export.json; give its step."""
    path = folder / layout.EXPORT_FILE
    try:
        summary = read_as(path, ExportSummary, mend="export again")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is no whole export ({layout.EXPORT_FILE} is missing): export again"
        ) from error
    if summary.format != FORMAT:
        raise UserError(f"{path} has format {summary.format}, this version reads {FORMAT}")
    if summary.step < 0:
        raise UserError(f"{path} is damaged: step is {summary.step}; export again")
    for name in CHECKED_FILES:
        if name not in summary.sha256:
            raise UserError(f"{path} is damaged: sha256 has no {name}; export again")
        if _checksum(folder / name) != summary.sha256[name]:
            raise UserError(
                f"{folder / name} is not the file that was exported (its sha256 differs): export "
                "again"
            )
    return summary.step


def _checksum(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
