"""A work directory at hf://: an export on the hub as a local folder that outputs may go into.

The folder is in the current one, `USER--NAME`, and its files of the export are links into the hub's
cache. What a command writes lies beside them, as in a folder that was exported to.
"""

import os
from pathlib import Path

from diffussm_jax.errors import UserError
from diffussm_jax.files import require_only
from diffussm_jax.files.hub.address import Address
from diffussm_jax.files.paths import as_path
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.lock import is_lock


def mirror(address: Address) -> Path:
    """Download an export and give its folder of links here, which is made or brought up to date.

    Raises:
        UserError: it cannot be downloaded, or something else is in the folder's place.
    """
    source, folder = as_path(str(address)), Path(address.folder_name)
    named = f"--workdir={address}: the folder {folder} for its outputs"

    def is_ours(name: str) -> bool:
        ours = (*layout.OUTPUTS, layout.EXPORT_FOLDER)
        return name in ours or is_lock(name) or (folder / name).is_symlink()

    require_only(folder, is_ours, named=named)
    try:
        folder.mkdir(exist_ok=True)
        for link in folder.iterdir():
            if link.is_symlink() and not (source / link.name).exists():
                link.unlink(missing_ok=True)  # another process may have done so
        for path in source.iterdir():
            _link(folder / path.name, path.absolute())
    except OSError as error:
        raise UserError(f"{named} cannot be written: {error.strerror or error}") from error
    return folder


def _link(link: Path, target: Path) -> None:
    """Make or replace a link as a unit: several processes may make it at once."""
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)
