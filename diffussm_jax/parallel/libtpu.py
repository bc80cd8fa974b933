"""libtpu as a compiler on machines without a TPU."""

import os

import jax as _jax  # noqa: F401 - importing it notes whether this machine has TPU chips


def let_libtpu_compile() -> None:
    """Let libtpu serve as a compiler where there is no TPU; does nothing on a TPU machine.

    It then asks the network for no metadata, and several processes may load it.
    """
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # JAX's import sets it where it sees no TPU
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
