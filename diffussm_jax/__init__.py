"""DiffuSSM in JAX: image diffusion without attention.

import diffussm_jax

model = diffussm_jax.load("runs/digits")
diffussm_jax.save_grid(model.sample(classes=[3, 1, 4, 1, 5]), "pi.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffussm_jax.sampling.images import save_grid
    from diffussm_jax.sampling.model import load

__version__ = "0.1.0"
__all__ = ["load", "save_grid"]


def __getattr__(name: str) -> Any:
    """Import `load` and `save_grid` when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "sampling.model" if name == "load" else "sampling.images"
    return getattr(importlib.import_module(f"diffussm_jax.{room}"), name)
