"""Files of a folder as one commit on the hub.

A revision is there with all of its files or not at all: large files are uploaded first, and the
commit that names them is the last request. After a failure the same call sends only what the hub
has not got yet.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

from diffussm_jax.files.hub.address import Address
from diffussm_jax.files.hub.failures import in_one_line

logger = logging.getLogger(__name__)


def require_name(repository: str, *, named: str) -> None:
    """Raise UserError unless the hub takes such a name."""
    with in_one_line(named):
        validate_repo_id(repository)


def require_token(*, named: str) -> None:
    """Raise UserError, before anything is computed, unless the hub takes the token."""
    with in_one_line(named):
        HfApi().whoami()


def open_repository(repository: str, *, public: bool, named: str) -> Address:
    """Create a repository unless it is there, and give its newest commit.

    Raises:
        UserError: it cannot be created, or reached.
    """
    api = HfApi()
    with in_one_line(named):
        api.create_repo(repository, private=not public, exist_ok=True)
        info = api.model_info(repository)
    if public == info.private:
        is_now, wanted = ("private", "public") if public else ("public", "private")
        logger.warning(
            "%s exists and stays %s: its settings on the hub make it %s", named, is_now, wanted
        )
    return Address(repository, info.sha)


def list_files(head: Address, *, named: str) -> set[str]:
    """The names of the files of a commit."""
    with in_one_line(named):
        return set(HfApi().list_repo_files(head.repository, revision=head.revision))


def commit(
    head: Address,
    folder: Path,
    names: Sequence[str],
    gone: Sequence[str],
    *,
    message: str,
    named: str,
) -> str:
    """Add files of a folder and remove others in one commit after `head`; give its address.

    Raises:
        UserError: the hub refuses it, cannot be reached, or somebody else has pushed since `head`.
    """
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, str(folder / name)) for name in names),
        *(CommitOperationDelete(name) for name in gone),
    ]
    with in_one_line(named):
        info = HfApi().create_commit(
            head.repository, changes, commit_message=message, parent_commit=head.revision
        )
    return str(Address(head.repository, info.oid))
