"""Names of data sets that mean the same on every machine."""

from diffussm_jax.config.paths import FOLDER, HUB, PARQUET, parse_hub_name
from diffussm_jax.files.hub.address import is_address, parse
from diffussm_jax.files.paths import as_path


def portable_name(name: str) -> str:
    """Reduce the path of a folder to its last part, and leave most other names as they are.

    Where a folder lies differs from machine to machine. A name on the hub loses its revision: the
    fingerprint says whether the images are the same.
    """
    for prefix in (FOLDER, PARQUET):
        if name.startswith(prefix):
            return prefix + as_path(name.removeprefix(prefix)).resolve().name
    hub = parse_hub_name(name)
    if hub is not None:
        return f"{HUB}{hub.repository}" + (f":{hub.config}" if hub.config else "")
    if is_address(name):
        return parse(name).repository
    folder = as_path(name)
    return folder.resolve().name if folder.is_dir() else name
