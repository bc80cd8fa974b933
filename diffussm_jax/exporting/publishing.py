"""An export as a repository on the Hugging Face hub: all of its files in one commit."""

import logging
from pathlib import Path

from diffussm_jax.config import ExportConfig
from diffussm_jax.errors import UserError
from diffussm_jax.files.hub.address import Address
from diffussm_jax.files.hub.push import (
    commit,
    list_files,
    open_repository,
    require_name,
    require_token,
)
from diffussm_jax.files.hub.snapshot import fetch
from diffussm_jax.files.paths import is_in_bucket
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.exports import (
    CARD_FILE,
    EXPORTED,
    KEPT,
    LICENCE,
    NEW_CARD_FILE,
    has_edited_card,
)

logger = logging.getLogger(__name__)

_FIELD = "config.export.push_to"


def require_pushable(options: ExportConfig, folder: Path) -> None:
    """Raise UserError, before anything is computed, if an export in a folder cannot be pushed."""
    if options.push_to is None:
        return
    if is_in_bucket(folder):
        raise UserError(
            f"{_FIELD}: {folder} is in a bucket: name a folder of this machine to push from, as "
            "--config.export.folder=FOLDER"
        )
    require_name(options.push_to, named=_named(options))
    if not options.push_dry_run:
        require_token(named=_named(options))


def publish(options: ExportConfig, folder: Path, *, step: int) -> None:
    """Push an export as `export.push_to` says, or only say what would be pushed.

    A model card that was edited on the hub is kept, unless the one here was edited too.

    Raises:
        UserError: the repository holds anything else, the hub refuses it or cannot be reached.
    """
    assert options.push_to is not None
    named, names = _named(options), _files(folder)
    if options.push_dry_run:
        _describe(options, folder, names)
        return
    head = open_repository(options.push_to, public=options.push_public, named=named)
    there = list_files(head, named=named)
    _require_ours(there, named=named)
    gone = sorted(there & {*EXPORTED} - {*names})
    if _is_card_edited_there(head, there) and not has_edited_card(folder):
        names.remove(CARD_FILE)
        logger.warning("the model card of %s was edited on the hub and is kept", named)
    message = f"Weights of step {step}"
    address = commit(head, folder, names, gone, message=message, named=named)
    logger.info("pushed %s to %s", ", ".join(names), address)


def _named(options: ExportConfig) -> str:
    return f"{_FIELD}: {Address(str(options.push_to))}"


def _require_ours(there: set[str], *, named: str) -> None:
    """Raise UserError if a repository holds anything that no export has."""
    if others := [x for x in there if x not in EXPORTED and not x.startswith(KEPT)]:
        raise UserError(
            f"{named} holds {min(others)!r}, which does not belong there: push to another one"
        )


def _files(folder: Path) -> list[str]:
    """The files of an export by name, and its licence; nothing else that lies beside them."""
    pushed = {*EXPORTED} - {NEW_CARD_FILE}
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(name for name in names if name in pushed or name.startswith(LICENCE))


def _describe(options: ExportConfig, folder: Path, names: list[str]) -> None:
    kind = "public" if options.push_public else "private"
    logger.info("would push to %s, %s if it is new:", Address(str(options.push_to)), kind)
    for name in names:
        logger.info("  %s, %d bytes", name, (folder / name).stat().st_size)


def _is_card_edited_there(head: Address, there: set[str]) -> bool:
    if not {CARD_FILE, layout.EXPORT_FILE} <= there:
        return False
    return has_edited_card(fetch(head, [CARD_FILE, layout.EXPORT_FILE]))
