"""Addresses of repositories on the hub, as `hf://USER/NAME@REVISION`."""

import re
from typing import NamedTuple

from diffussm_jax.errors import UserError

SCHEME = "hf://"
_NAME = r"[\w.-]+/[\w.-]+"


class Address(NamedTuple):
    """A repository, and a branch, tag or commit of it; None is its main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{revision}"

    @property
    def folder_name(self) -> str:
        """The name of a folder for what is made of this repository, as `USER--NAME`."""
        parts = [self.repository, *filter(None, [self.revision])]
        return "--".join(parts).replace("/", "--")


def is_address(name: str) -> bool:
    """Whether a name of a folder is one on the hub."""
    return name.startswith(SCHEME)


def is_repository(name: str) -> bool:
    """Whether a name has the form USER/NAME."""
    return re.fullmatch(_NAME, name) is not None


def parse(name: str) -> Address:
    """Read an address.

    Raises:
        UserError: it has another form.
    """
    match = re.fullmatch(rf"{SCHEME}({_NAME})(?:@(\S+))?", name)
    if match is None:
        raise UserError(f"{name} must be {SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION")
    return Address(match[1], match[2])
