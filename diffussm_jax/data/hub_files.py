"""The parquet files of a data set on the Hugging Face hub, in the hub's cache on this machine."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, errors, snapshot_download

from diffussm_jax.config.paths import HubName
from diffussm_jax.errors import UserError
from diffussm_jax.files.hub.failures import in_one_line

logger = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # where the hub keeps its own conversion of a repository
_SERVER_ERRORS = 500  # and above

Choice = Callable[[Iterable[str]], list[str]]


class Snapshot(NamedTuple):
    """A folder of the cache, and the commit that its files are of."""

    folder: Path
    commit: str


def fetch(name: HubName, choose: Choice, *, named: str, is_offline: bool = False) -> Snapshot:
    """Download files of a data set; those in the cache are kept.

    Where the repository has no parquet, the hub's own conversion is taken. Without a network what
    is in the cache serves. Every host of a job downloads for itself.

    Args:
        choose: gives those of the repository's files that are needed.
        is_offline: whether only the cache is looked into.

    Raises:
        UserError: there is no such repository, revision, access or network.
    """
    with in_one_line(named):
        if not is_offline:
            try:
                return _download(name, choose, named=named)
            except UserError:
                raise
            except errors.HfHubHTTPError as error:
                if error.response.status_code < _SERVER_ERRORS:
                    raise
                reason: Exception = error
            # Those of its transport, whose module depends on its version.
            except Exception as error:  # noqa: BLE001
                reason = error
            logger.warning("%s: the hub cannot be asked (%s)", named, type(reason).__name__)
        return _find_in_cache(name)


def _download(name: HubName, choose: Choice, *, named: str) -> Snapshot:
    api, revision = HfApi(), name.revision
    files = _list(api, name.repository, revision)
    if not any(_is_parquet(x) for x in files) and revision is None:
        revision = CONVERTED
        try:
            files = _list(api, name.repository, revision)
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{named} has no parquet, and the hub has converted none") from error
        logger.info("%s has no parquet: taking what the hub has converted", named)
    chosen = choose(files)
    folder = snapshot_download(
        name.repository, repo_type="dataset", revision=revision, allow_patterns=chosen
    )
    return _snapshot(Path(folder))


def _list(api: HfApi, repository: str, revision: str | None) -> list[str]:
    siblings = api.dataset_info(repository, revision=revision).siblings or []
    return [x.rfilename for x in siblings]


def _find_in_cache(name: HubName) -> Snapshot:
    """The newest snapshot that was downloaded; LocalEntryNotFoundError where there is none."""
    revisions = [name.revision] if name.revision else [None, CONVERTED]
    missing: Exception | None = None
    for revision in revisions:
        try:
            folder = snapshot_download(
                name.repository, repo_type="dataset", revision=revision, local_files_only=True
            )
        except errors.LocalEntryNotFoundError as error:
            missing = missing or error
        else:
            if any(Path(folder).rglob("*.parquet")):
                return _snapshot(Path(folder))
    assert missing is not None
    raise missing


def _snapshot(folder: Path) -> Snapshot:
    return Snapshot(folder, folder.name)  # the cache names its folders by commits


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")
