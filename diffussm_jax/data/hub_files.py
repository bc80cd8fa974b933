"""The parquet files of a data set on the Hugging Face hub, in the hub's cache on this machine."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, errors, get_cached_repo_tree, snapshot_download

from diffussm_jax.config.paths import HubName
from diffussm_jax.errors import UserError
from diffussm_jax.files.hub.failures import in_one_line

logger = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # where the hub keeps its own conversion of a repository
_SERVER_ERRORS = 500  # and above

Choice = Callable[[Iterable[str]], list[str]]
Listing = tuple[str | None, list[str]]  # a revision, and the names of its files


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
        listing = None if is_offline else _ask(name, named=named)
        is_cached = listing is None
        revision, files = listing or _find_in_cache(name)
        if not any(map(_is_parquet, files)):
            raise UserError(f"{named} has no parquet, and the hub has converted none")
        if revision != name.revision:
            logger.info("%s has no parquet: taking what the hub has converted", named)
        folder = snapshot_download(
            name.repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=choose(files),
            local_files_only=is_cached,
        )
    return Snapshot(Path(folder), Path(folder).name)  # the cache names its folders by commits


def _ask(name: HubName, *, named: str) -> Listing | None:
    """The files of a repository, or of the hub's conversion; None where the hub cannot be asked."""
    try:
        for revision in _revisions(name):
            siblings = HfApi().dataset_info(name.repository, revision=revision).siblings or []
            files = [x.rfilename for x in siblings]
            if any(map(_is_parquet, files)):
                break
    except errors.RevisionNotFoundError:
        if revision == name.revision:
            raise
    except errors.HfHubHTTPError as error:
        if error.response.status_code < _SERVER_ERRORS:
            raise
        logger.warning("%s: the hub answers %d", named, error.response.status_code)
        return None
    # Those of its transport, whose module depends on its version.
    except Exception as error:  # noqa: BLE001
        logger.warning("%s: the hub cannot be asked (%s)", named, type(error).__name__)
        return None
    return revision, files


def _find_in_cache(name: HubName) -> Listing:
    """The files of the revision that was downloaded last, whether or not all of them were."""
    for revision in _revisions(name):
        try:
            tree = get_cached_repo_tree(name.repository, repo_type="dataset", revision=revision)
        except errors.CachedRepoTreeNotFoundError:
            continue
        if any(_is_parquet(x.path) for x in tree):
            return revision, [x.path for x in tree]
    raise errors.LocalEntryNotFoundError(f"{name.repository} is not in the cache")


def _revisions(name: HubName) -> list[str | None]:
    return [name.revision] if name.revision else [None, CONVERTED]


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")
