"""Convert the released DiT weights to an export.

python -m diffussm_jax.convert.dit DiT-XL-2-256x256.pt runs/dit-xl-2

The file is https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt, or that of 512x512. This
is done once, where PyTorch is installed (`pip install -e '.[parity]'`). `--mode=sample` and
`diffussm_jax.load` read the result as any export.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from diffussm_jax.config import DIT_SIZES, Config, from_dict
from diffussm_jax.convert import command
from diffussm_jax.convert.torch_file import read_torch
from diffussm_jax.errors import UserError
from diffussm_jax.models.dit import position_code
from diffussm_jax.models.released_dit import LABELS, POSITIONS, from_released
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir.exports import write_export
from diffussm_jax.workdir.weights import require_same_tensors

FACTOR = 8  # pixels for each latent position and side of DiT's autoencoder
RELEASED_STEPS = {256: 7_000_000, 512: 3_000_000}  # by image size (DiT, section 5.1)


def convert(source: Path, folder: Path) -> Config:
    """Write the model of a released `.pt` file to `folder` as an export.

    Returns:
        The config, as the shapes of the weights say.

    Raises:
        UserError: `source` cannot be read or holds something else.
    """
    released, sha256 = read_torch(source)
    weights = {name: x.float().numpy() for name, x in released.items()}
    try:
        config = config_of(weights)
        tensors = from_released(weights, depth=config.model.depth)
    except (KeyError, ValueError) as error:
        raise UserError(f"{source} is no DiT of the released code: {error}") from error
    _, shapes = abstract_model(config)
    require_same_tensors(tensors, flatten_dict(shapes, sep="."), source)
    facts = {"source": f"converted from {source.name}, sha256 {sha256}"}
    write_export(folder, config, facts, tensors, config.training.num_steps)
    return config


def config_of(weights: Mapping[str, np.ndarray]) -> Config:
    """The config of a model of these weights: their shapes tell size, patch, classes, resolution.

    Raises:
        KeyError: a weight is missing.
        ValueError: the size is not one of DiT's, or the position table is another.
    """
    width, channels, patch_size, _ = weights["x_embedder.proj.weight"].shape
    blocks = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))}
    heads = {size[:2]: size[2] for size in DIT_SIZES.values()}
    if (len(blocks), width) not in heads:
        raise ValueError(f"{len(blocks)} layers of width {width} are no size of DiT")
    num_heads = heads[len(blocks), width]
    side = math.isqrt(weights[POSITIONS].shape[1])
    _require_same_positions(weights[POSITIONS], side, width)
    image_size = side * patch_size * FACTOR
    model = {
        "name": "dit",
        "depth": len(blocks),
        "width": width,
        "patch_size": patch_size,
        "num_heads": num_heads,
        "dtype": "float32",  # in which DiT's scores were measured
    }
    data = {
        "name": "imagenet2012",
        "space": "latents",
        "image_size": image_size,
        "channels": 3,
        "num_classes": len(weights[LABELS]) - 1,
    }
    steps = RELEASED_STEPS.get(image_size, RELEASED_STEPS[256])
    return from_dict(
        {
            "model": model,
            "data": data,
            "autoencoder": {"factor": FACTOR, "channels": channels},
            "training": {"num_steps": steps},
        }
    )


def _require_same_positions(table: np.ndarray, side: int, width: int) -> None:
    code = position_code(side, side, num_features=width)
    if table.shape[1:] != code.shape or np.abs(table[0] - code).max() > 1e-4:
        raise ValueError(f"{POSITIONS} is not the sin-cos table of a {side} x {side} grid")


def _convert_and_say(source: Path, folder: Path) -> str:
    model = convert(source, folder).model
    size = f"{model.depth} layers of width {model.width}, patches of {model.patch_size}"
    return f"wrote {folder}: {size}\n"


if __name__ == "__main__":
    command.main(__doc__, "folder", _convert_and_say)
