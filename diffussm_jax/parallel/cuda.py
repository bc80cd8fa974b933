"""JAX's CUDA plug-in as a compiler on machines without a GPU."""

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # of Linux, and of Linux in Windows


def has_cuda_plugin() -> bool:
    """Whether JAX's CUDA plug-in is installed."""
    return any(x.name.startswith("xla_cuda") for x in entry_points(group="jax_plugins"))


@contextlib.contextmanager
def cuda_as_compiler() -> Iterator[None]:
    """Let the CUDA plug-in load where there is no GPU; does nothing where there is one.

    JAX would refuse a plug-in that finds neither CUDA nor a card, and its libraries write to the
    process's stderr that they find none. Where CUDA is installed, a card is expected, and what they
    write is for the user.
    """
    if not has_cuda_plugin() or any(Path(driver).exists() for driver in _DRIVERS):
        yield
        return
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    if find_spec("nvidia"):
        yield
        return
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
