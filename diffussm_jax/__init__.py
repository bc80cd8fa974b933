"""DiffuSSM in JAX: image diffusion without attention."""

import os

import jax as _jax  # noqa: F401  # notes whether this machine has TPU chips

# `libtpu` serves as a compiler on machines without a chip. There it must not ask the network what machine this
# is, and several processes may load it.
if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
