"""Paths in a config, written as in a shell."""

import os
import re
from typing import Annotated

from diffussm_jax.errors import UserError

FOLDER = "folder:"  # before the path of a folder of images, where it is the name of a data set

# The name of a file or folder, or of what else a field takes in its place.
FilePath = Annotated[str, "path"]


def expand(name: str) -> str:
    """Replace `~` and `$NAME` in a path as a shell does, which leaves them alone after `=`.

    Raises:
        UserError: there is no such user or variable, and no file of that very name.
    """
    prefix = FOLDER if name.startswith(FOLDER) else ""
    path = os.path.expandvars(os.path.expanduser(name.removeprefix(prefix)))
    unknown = re.match(r"~[^/]*", path) or re.search(r"\$(\w+|\{\w+\})", path)
    if unknown and not os.path.exists(path):
        kind = "user" if path.startswith("~") else "environment variable"
        raise UserError(f"there is no {kind} {unknown[0]}")
    return prefix + path
