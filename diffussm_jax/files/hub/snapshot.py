"""Files of a repository on the hub as a folder of its cache on this machine."""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from diffussm_jax.errors import UserError
from diffussm_jax.files.hub.address import Address
from diffussm_jax.files.hub.failures import in_one_line

logger = logging.getLogger(__name__)

SUMMARY_FILE = "export.json"
# What this program reads of an export; a repository may hold other files, of any size.
EXPORT_FILES = (SUMMARY_FILE, "config.json", "data.json", "model.safetensors", "verify.*")


def fetch_export(address: Address) -> Path:
    """Download an export; raises as `fetch`."""
    return fetch(address, EXPORT_FILES, required=[SUMMARY_FILE])


def fetch(address: Address, files: Sequence[str], *, required: Sequence[str] = ()) -> Path:
    """Download those of some files of a repository that it has; those in the cache are kept.

    Without a network a complete copy in the cache serves. Processes of one machine wait for each
    other by the cache's locks.

    Args:
        files: names, or patterns of names with `*`.
        required: names that must be among them.

    Raises:
        UserError: there is no such repository, revision or required file, no access or no network.
    """
    repository, revision = address
    with in_one_line(str(address)):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*files]))
    if missing := [name for name in required if not (folder / name).exists()]:
        raise UserError(f"{address} has no {missing[0]}: check the name and the revision")
    logger.info("%s is %s", address, folder)
    return folder
