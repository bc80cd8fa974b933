"""Published autoencoder weights: a folder or a hub id in the layout of `diffusers`, `config.json` beside safetensors."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from huggingface_hub import snapshot_download

from diffussm_jax.autoencoder.network import AutoencoderKL, AutoencoderKLConfig
from diffussm_jax.config import parsing
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors, sha256_of

CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
MAX_NUMBER, MAX_LAYERS = 2**16, 64  # of a config; more is damage
# Attention as weights older than diffusers 0.17 name it.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What a published config may say of the architecture; other values need code that is not here.
SUPPORTED: dict[str, set] = {
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
    """The autoencoder in a folder, as `find_autoencoder` gives it.

    Raises:
        UserError: files are missing or of another architecture.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    model = jax.eval_shape(lambda: AutoencoderKL(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    weights = {_new_name(name): value for name, value in tensors.items()}
    filled = jax.tree_util.tree_map_with_path(
        lambda path, x: _parameter(weights, path, x, folder), nnx.to_pure_dict(params)
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(model.config) | {"act_fn": "silu"}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    safetensors.numpy.save_file(weights, folder / WEIGHTS_FILE)


def weights_sha256(folder: Path) -> str:
    """What tells one set of weights from another."""
    try:
        return sha256_of(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: itself, or a download of a hub id such as `stabilityai/sd-vae-ft-ema`.

    Raises:
        UserError: it is neither.
    """
    folder = Path(os.path.expanduser(name))
    try:
        if folder.is_dir():
            return folder
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:
        raise UserError(
            f"config.autoencoder.name: {name!r} is no folder and could not be fetched from the hub "
            f"({type(error).__name__}): put its {CONFIG_FILE} and {WEIGHTS_FILE} in a folder and name that"
        ) from error


def _read_config(path: Path) -> AutoencoderKLConfig:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no config of an autoencoder")
    for field, supported in SUPPORTED.items():
        values = found.get(field)
        for value in values if isinstance(values, list) else [values]:
            if field in found and not any(value == x for x in supported):
                raise UserError(f"{path}: {field} = {value!r} is not supported")
    known = {field.name for field in dataclasses.fields(AutoencoderKLConfig)}
    values = {name: value for name, value in found.items() if name in known}
    if not isinstance(values.get("block_out_channels"), list):
        raise UserError(f"{path}: block_out_channels must be a list of widths")
    try:
        config = parsing.build(AutoencoderKLConfig, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
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


def _parameter(weights: dict, path: tuple, wanted: Any, folder: Path) -> np.ndarray:
    """The weight of a parameter's path, taken out of `weights`, in the layout of Flax."""
    *names, kind = (str(key.key) for key in path)
    name = ".".join([*names, {"bias": "bias"}.get(kind, "weight")])
    if name not in weights:
        raise UserError(f"{folder / WEIGHTS_FILE} has no {name}")
    value = weights.pop(name).astype(np.float32)
    if kind == "kernel" and len(wanted.shape) == 2:
        if value.shape[2:] == (1, 1):  # old attention has 1x1 convolutions
            value = value[..., 0, 0]
        value = value.T
    elif kind == "kernel" and value.ndim == 4:
        value = np.transpose(value, (2, 3, 1, 0))
    if value.shape != wanted.shape:
        raise UserError(
            f"{folder / WEIGHTS_FILE}: {name} has shape {value.shape}, wanted {wanted.shape}"
        )
    return value
