"""A teacher whose weights are random everywhere, as an export, and runs of its students."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from diffussm_jax.config import from_dict
from diffussm_jax.workdir.exports import write_export
from tests.conftest import TINY_MODEL
from tests.models.tiny import randomized

DIT = TINY_MODEL | {"name": "dit", "num_heads": 2}
HYBRID = {"mixers": ("s4d", "attention")}
VALUES = {
    "model": DIT,
    "diffusion": {"num_steps": 20},
    "data": {"flip": False, "eval_split": None},
    "optimizer": {"learning_rate": 1e-3},
    "training": {"num_steps": 4, "batch_size": 16, "log_every": 1, "sample_every": None},
    "checkpoint": {"every": 2, "keep": 5},
    "sample": {"num": 10, "batch_size": 8, "steps": 4, "sampler": "ddim"},
}


def values_with(values, **changes):
    """Nested values with fields of sections replaced."""
    return values | {name: values.get(name, {}) | section for name, section in changes.items()}


def write_teacher(folder, seed=0, **changes):
    """Write the export of a random DiT with eight-pixel digits, and give its parameters."""
    config = from_dict(values_with(VALUES, **changes))
    _, params = randomized(config, seed)
    tensors = {name: np.asarray(x) for name, x in flatten_dict(params, sep=".").items()}
    write_export(folder, config, {"class_names": [str(i) for i in range(10)]}, tensors, 7)
    return jax.tree.map(np.asarray, params)
