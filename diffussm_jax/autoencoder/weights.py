"""Published weights of an autoencoder, in a folder or on the hub.

Their layout is that of `diffusers`: `config.json` beside a file of safetensors.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.config.parsing import ConfigError, from_object, read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors, sha256_of, write_json
from diffussm_jax.files.hub.address import SCHEME, is_address, parse
from diffussm_jax.files.hub.snapshot import fetch
from diffussm_jax.files.paths import as_path

CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE)
# A config with larger numbers is damaged.
MAX_NUMBER = 2**16
MAX_LAYERS = 64
# Names of attention's layers in weights older than diffusers 0.17.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Values that a published config may have; others need code that is not here.
SUPPORTED: dict[str, set[Any]] = {
    "act_fn": {"silu"},
    "down_block_types": {"DownEncoderBlock2D"},
    "up_block_types": {"UpDecoderBlock2D"},
    "shift_factor": {None},
    "latents_mean": {None},
    "use_quant_conv": {True},
    "use_post_quant_conv": {True},
    "mid_block_add_attention": {True},
}


def load_autoencoder(folder: str | Path, *, dtype: str = "float32") -> AutoencoderKL:
    """Load the autoencoder in a folder, such as `find_autoencoder` returns.

    Raises:
        UserError: files are missing or of another architecture.
    """
    folder = as_path(folder)
    config = _read_config(folder / CONFIG_FILE)
    model = jax.eval_shape(lambda: AutoencoderKL(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    weights = {_new_name(name): value for name, value in tensors.items()}
    filled = jax.tree_util.tree_map_with_path(
        lambda path, x: _take(weights, path, x, folder), nnx.to_pure_dict(params)
    )
    if weights:
        raise UserError(
            f"{folder / WEIGHTS_FILE} has weights of another model, {min(weights)} among them"
        )
    nnx.replace_by_pure_dict(params, filled)
    return nnx.merge(graphdef, params)


def save_autoencoder(model: AutoencoderKL, folder: str | Path) -> None:
    """Write an autoencoder in the layout that `load_autoencoder` reads."""
    weights = {}
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        *names, kind = (str(key.key) for key in path)
        array = np.asarray(value)
        if array.ndim > 1:
            array = np.moveaxis(array, (-1, -2), (0, 1))  # out, in, then the window
        name = ".".join([*names, "bias" if kind == "bias" else "weight"])
        weights[name] = np.ascontiguousarray(array)
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    num = len(model.config.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * num,
        "up_block_types": ["UpDecoderBlock2D"] * num,
    }
    config = dataclasses.asdict(model.config) | {"act_fn": "silu"} | blocks
    write_json(folder / CONFIG_FILE, config)
    safetensors.numpy.save_file(weights, folder / WEIGHTS_FILE)


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of the weights' file in an autoencoder's folder.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return sha256_of(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error


def find_autoencoder(name: str) -> Path:
    """Find the folder of an autoencoder.

    Args:
        name: a folder, or a repository on the hub such as `stabilityai/sd-vae-ft-ema` or
            `hf://stabilityai/sd-vae-ft-ema@REVISION`, which is downloaded once.

    Raises:
        UserError: it is neither, or cannot be downloaded.
    """
    try:
        if not is_address(name) and as_path(name).is_dir():
            return as_path(name)
        address = parse(name if is_address(name) else f"{SCHEME}{name}")
        return fetch(address, FILES, required=FILES)
    except (ValueError, OSError) as error:  # a ValueError: a UserError, or a NUL in the name
        raise UserError(
            f"config.autoencoder.name: {name!r} is no folder and could not be fetched from the "
            f"hub: {error}; or put its {CONFIG_FILE} and {WEIGHTS_FILE} in a folder and name that"
        ) from error


def _read_config(path: Path) -> AutoencoderKLConfig:
    try:
        values = read_as(path, dict)
        config = from_object(AutoencoderKLConfig, values)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from error
    if "block_out_channels" not in values:
        raise UserError(f"{path}: block_out_channels must be a list of widths")
    for field, supported in SUPPORTED.items():
        value = values.get(field)
        for item in value if isinstance(value, list) else [value]:
            if field in values and not any(item == x for x in supported):
                raise UserError(f"{path}: {field} = {item!r} is not supported")
    _check_numbers(config, path)
    return config


def _check_numbers(config: AutoencoderKLConfig, path: Path) -> None:
    """Raise UserError unless a network of such numbers can be made."""
    for field, value in dataclasses.asdict(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(0 < number <= MAX_NUMBER for number in numbers):
            raise UserError(
                f"{path}: {field} must be positive and at most {MAX_NUMBER}, got {value!r}"
            )
    if max(config.layers_per_block, len(config.block_out_channels)) > MAX_LAYERS:
        raise UserError(f"{path}: more than {MAX_LAYERS} blocks or layers of a block")
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        raise UserError(
            f"{path}: norm_num_groups must divide block_out_channels, got {config.norm_num_groups}"
        )


def _new_name(name: str) -> str:
    *path, layer, kind = ["", *name.split(".")]
    if "attentions" in path:
        layer = OLD_NAMES.get(layer, layer)
    return ".".join([*path, layer, kind]).removeprefix(".")


def _take(weights: dict[str, np.ndarray], path: tuple, abstract: Any, folder: Path) -> np.ndarray:
    """Take the weight of a parameter out of `weights`, in the layout of Flax."""
    *names, kind = (str(key.key) for key in path)
    name = ".".join([*names, {"bias": "bias"}.get(kind, "weight")])
    if name not in weights:
        raise UserError(f"{folder / WEIGHTS_FILE} has no {name}")
    value = weights.pop(name).astype(np.float32)
    if kind == "kernel" and len(abstract.shape) == 2:
        if value.shape[2:] == (1, 1):  # old attention has 1x1 convolutions
            value = value[..., 0, 0]
        value = value.T
    elif kind == "kernel" and value.ndim == 4:
        value = np.transpose(value, (2, 3, 1, 0))
    if value.shape != abstract.shape:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: {name} has shape {value.shape}, wanted {abstract.shape}"
        )
    return value
