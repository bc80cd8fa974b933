"""Paths in a config, written as in a shell."""

import os
import re
from typing import Annotated, NamedTuple

from diffussm_jax.errors import UserError

# Before the path of a folder of images or of parquet files, where it is the name of a data set.
FOLDER, PARQUET = "folder:", "parquet:"
HUB = "hf:"  # before the name of a data set on the Hugging Face hub

# The name of a file or folder, or of what else a field takes in its place.
FilePath = Annotated[str, "path"]


def expand(name: str) -> str:
    """Replace `~` and `$NAME` in a path as a shell does, which leaves them alone after `=`.

    Raises:
        UserError: there is no such user or variable, and no file of that very name.
    """
    prefix = next((x for x in (FOLDER, PARQUET) if name.startswith(x)), "")
    path = os.path.expandvars(os.path.expanduser(name.removeprefix(prefix)))
    unknown = re.match(r"~[^/]*", path) or re.search(r"\$(\w+|\{\w+\})", path)
    if unknown and not os.path.exists(path):
        kind = "user" if path.startswith("~") else "environment variable"
        raise UserError(f"there is no {kind} {unknown[0]}")
    return prefix + path


class HubName(NamedTuple):
    """A data set on the hub: a branch, tag or commit, and a config; None is the default of both."""

    repository: str
    revision: str | None
    config: str | None


def parse_hub_name(name: str) -> HubName | None:
    """Read `hf:USER/NAME[@REVISION][:CONFIG]`; None if it has another form."""
    match = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([^:\s]+))?(?::(\S+))?", name)
    return HubName(*match.groups()) if match else None


def is_parquet(name: str) -> bool:
    """Whether a data set's files are parquet, here or on the hub."""
    return name.startswith((PARQUET, HUB))
