"""An export: a folder to keep or publish.

export.json         the step, and the checksums of the files below; written last
model.safetensors   the EMA parameters, float32, named as `blocks.w0.kernel`
config.json         the config of the run, without the paths of the machine it ran on
data.json           the names of the classes, and what the data was made of
README.md           a model card
samples.png         a picture for it
verify.*            what the model draws, for --mode=verify (sampling/verification.py)
model.py            where it was asked for: draws from the others with PyTorch alone
web                 likewise: a page that draws in browsers, without the others
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from diffussm_jax.config import Config, to_json
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import require_only, sha256_of, write_json, write_tensors, write_text
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.data_facts import DATA_FILE, read_data_facts, write_data_facts
from diffussm_jax.workdir.lock import held, is_lock
from diffussm_jax.workdir.model_card import model_card

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
NEW_CARD_FILE = "README.new.md"
# Files with a noted checksum: a model card may be edited.
CHECKED_FILES = (layout.WEIGHTS_FILE, layout.CONFIG_FILE, DATA_FILE)
PROGRAMS = (layout.PYTORCH_FILE,)  # that draw from an export in other ways than this one
# Files of what the weights draw, which have a noted checksum too.
DRAWN_FILES = (*layout.VERIFY_FILES, layout.PICTURE_FILE)
# What a folder or a repository of an export may hold of ours, besides outputs.
EXPORTED = (
    layout.EXPORT_FILE,
    CARD_FILE,
    NEW_CARD_FILE,
    *CHECKED_FILES,
    *PROGRAMS,
    *DRAWN_FILES,
    layout.PAGE_FOLDER,
    layout.PIPELINE_FOLDER,
)
LICENCE = "LICENSE"
KEPT = (".git", LICENCE)  # beginnings of names of what its publisher or the hub may add
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ExportSummary:
    """What export.json holds; `sha256` is by the name of the file."""

    format: int
    step: int
    sha256: dict[str, str]


def require_export_or_new(folder: Path, *, named: str) -> None:
    """Raise UserError if writing an export would put it among anybody else's files."""
    ours = {layout.CONFIG_FILE, *layout.OUTPUTS}
    kept = KEPT if (folder / layout.EXPORT_FILE).exists() else ()
    if (folder / layout.EXPORT_FILE).exists() or _has_config(folder):
        ours |= {*EXPORTED}
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
    *,
    drawn: Mapping[str, bytes] = MappingProxyType({}),
    place: str = "FOLDER",
) -> None:
    """Write the files of an export, into a new folder or over an earlier one.

    A model card that was edited is kept, and the new one is written beside it.

    Args:
        facts: what data.json says of the data.
        tensors: parameters, float32, named as `blocks.w0.kernel`.
        step: number of updates made.
        programs: the texts of some of PROGRAMS, to lie beside; others of an earlier export go.
        drawn: some of DRAWN_FILES; others of an earlier export go.
        place: where the model card says that the export is.

    Raises:
        UserError: the folder holds anything else, or another process writes into it.
    """
    named = f"the export's folder {folder}"
    require_export_or_new(folder, named=named)
    with held(folder, named=named):
        _write_files(folder, config, facts, tensors, step, programs, drawn, place)


def _write_files(
    folder: Path,
    config: Config,
    facts: dict[str, Any],
    tensors: dict[str, np.ndarray],
    step: int,
    programs: Mapping[str, str],
    drawn: Mapping[str, bytes],
    place: str,
) -> None:
    card_path = folder / (NEW_CARD_FILE if has_edited_card(folder) else CARD_FILE)
    (folder / layout.EXPORT_FILE).unlink(missing_ok=True)
    write_text(folder / layout.CONFIG_FILE, to_json(config))  # first: it tells whose folder it is
    write_data_facts(folder, facts)
    num_parameters = sum(x.size for x in tensors.values())
    known = read_data_facts(folder)
    picture = layout.PICTURE_FILE if layout.PICTURE_FILE in drawn else None
    card = model_card(
        config, known, step=step, num_parameters=num_parameters, place=place, picture=picture
    )
    write_text(card_path, card)
    write_tensors(folder / layout.WEIGHTS_FILE, tensors)
    for name in (*PROGRAMS, *DRAWN_FILES):
        (folder / name).unlink(missing_ok=True)
    for name, text in programs.items():
        write_text(folder / name, text)
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    checksums = {name: _checksum(folder / name) for name in (*CHECKED_FILES, *drawn)}
    checksums[CARD_FILE] = _checksum(card_path)  # to tell later whether it was edited
    summary = ExportSummary(FORMAT, step, checksums)
    write_json(folder / layout.EXPORT_FILE, dataclasses.asdict(summary))
    if card_path.name != CARD_FILE:
        logger.warning("%s was edited and is kept: %s is new", folder / CARD_FILE, card_path)
    if beside := [name for name in layout.OUTPUTS if (folder / name).exists()]:
        logger.warning("%s in %s may be of the weights before", " and ".join(beside), folder)


def has_edited_card(folder: Path) -> bool:
    """Whether there is a model card that is not the one which was written with the export."""
    if not (folder / CARD_FILE).exists():
        return False
    try:
        noted = read_as(folder / layout.EXPORT_FILE, ExportSummary).sha256.get(CARD_FILE)
    except (FileNotFoundError, UserError):
        return True
    return noted != _checksum(folder / CARD_FILE)


def check_files(folder: Path, names: Sequence[str] = CHECKED_FILES) -> int:
    """Raise UserError unless files have the checksums in export.json; give its step."""
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
    for name in names:
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
