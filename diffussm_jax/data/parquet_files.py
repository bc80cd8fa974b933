"""The files of a data set in parquet, in a folder or on the hub; their names say the split.

train-00000-of-00005.parquet        data/train-00000-of-00005.parquet
CONFIG/train-00000-of-00005.parquet         CONFIG/train/0000.parquet
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from diffussm_jax.config import DataConfig
from diffussm_jax.config.paths import PARQUET, parse_hub_name
from diffussm_jax.data import hub_files
from diffussm_jax.errors import UserError

SUFFIX = ".parquet"
# A split, the number of a file, how many there are, and the checksum that the hub may add.
_NAME = re.compile(r"(?P<split>.*?)[-_.]?(?P<number>\d+)?(-of-(?P<num>\d+))?(-[0-9a-f]{16})?")
_DATA = "data"  # a folder of files that is no config
_DEFAULT = "default"  # the config that is taken where there are several

Splits = dict[str, list[str]]  # the names of the files of each split, in their order


class _Place(NamedTuple):
    config: str
    split: str


class ParquetFiles(NamedTuple):
    """The files of some splits.

    Attributes:
        names: those of each split, relative to the folder, in their order.
        facts: what data.json says of them: the commit on the hub.
    """

    folder: Path
    names: Splits
    facts: dict[str, Any]

    @property
    def paths(self) -> list[Path]:
        """All files, one split after the other."""
        return [self.folder / name for names in self.names.values() for name in names]


def find_files(config: DataConfig, split: str, *, is_offline: bool = False) -> ParquetFiles:
    """Find the files of a split, which may be slices of several; download them from the hub.

    Args:
        is_offline: whether of the hub only its cache is looked into.

    Raises:
        UserError: there is no such folder, repository or split, or a file of it is missing.
    """
    named = f"config.data.name: {config.name}"
    hub = parse_hub_name(config.name)

    def choose(names: Iterable[str]) -> Splits:
        splits = splits_of(names, config=hub.config if hub else None, named=named)
        return _choose_splits(splits, split, config.name)

    if hub is None:
        folder, facts = Path(config.name.removeprefix(PARQUET)), {}
        if not folder.is_dir():
            raise UserError(f"config.data.name: there is no folder {folder}")
    else:
        folder, commit = hub_files.fetch(
            hub,
            lambda names: [x for files in choose(names).values() for x in files],
            named=named,
            is_offline=is_offline,
        )
        facts = {"revision": commit}
    chosen = choose(x.relative_to(folder).as_posix() for x in folder.rglob(f"*{SUFFIX}"))
    for names in chosen.values():
        _require_all(names, named=named)
    return ParquetFiles(folder, chosen, facts)


def _choose_splits(splits: Splits, split: str, name: str) -> Splits:
    chosen = {part.strip().partition("[")[0] for part in split.split("+")}
    if chosen != {"all"} and not chosen <= splits.keys():
        raise no_split(name, split, splits)
    return {x: files for x, files in splits.items() if x in chosen or "all" in chosen}


def no_split(name: str, split: str, known: Iterable[str]) -> UserError:
    """The error of a split that a data set does not have."""
    return UserError(
        f"data set {name!r} has no split {split!r}; it has {', '.join(known)} and their slices, "
        "as train[:99%]"
    )


def splits_of(names: Iterable[str], *, config: str | None, named: str) -> Splits:
    """Sort the names of files in a folder into splits; those that are no parquet are left out.

    Args:
        config: the folder of one of several data sets; None is the only one, or `default`.
        named: what an error calls the folder.

    Raises:
        UserError: there is no such config, there are several, or no parquet at all.
    """
    places: dict[str, Splits] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        if name.endswith(SUFFIX) and not any(x.startswith(".") for x in PurePosixPath(name).parts):
            place = _place(PurePosixPath(name))
            places[place.config][place.split].append(name)
    if not places:
        raise UserError(f"{named} has no {SUFFIX} files")
    known = ", ".join(sorted(filter(None, places)))
    if config is not None and config not in places:
        raise UserError(
            f"{named} has no config {config!r}" + (f"; it has {known}" if known else "")
        )
    if config is None:
        config = next(iter(places)) if len(places) == 1 else _DEFAULT
    if config not in places:
        raise UserError(f"{named} has several data sets: name one of {known} behind it, as :CONFIG")
    return dict(places[config])


def _require_all(names: Sequence[str], *, named: str) -> None:
    """Raise UserError if files are missing that the names of the others count."""
    for name in names:
        match = _match(PurePosixPath(name))
        if match["num"] is not None and int(match["num"]) != len(names):
            raise UserError(
                f"{named} has {len(names)} files like {name}, whose name says {int(match['num'])}: "
                "bring the others, or remove those of another version"
            )


def _place(path: PurePosixPath) -> _Place:
    folders = [x for x in path.parent.parts if x != _DATA]
    split = _match(path)["split"]
    if not split:  # a number alone: the folder is the split
        split = folders.pop() if folders else "train"
    return _Place("/".join(folders), split)


def _match(path: PurePosixPath) -> re.Match[str]:
    match = _NAME.fullmatch(path.name.removesuffix(SUFFIX))
    assert match is not None  # it fits any text
    return match
