"""Convert the published PyTorch copy of Inception's weights to safetensors.

python -m diffussm_jax.convert.inception SOURCE TARGET

The source is pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases (docs/evaluation.md).
This is done once, where PyTorch is installed (`pip install -e '.[parity]'`); `--mode=evaluate`
reads the result without it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from diffussm_jax.convert import command
from diffussm_jax.convert.torch_file import read_torch
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.inception import (
    PUBLISHED_SHA256,
    Weights,
    save_inception,
    weight_shapes,
)

BATCH_NORM_EPSILON = 1e-3


def convert(source: Path, target: Path) -> str:
    """Write the weights of `source` to `target`.

    Returns:
        The SHA-256 of `source`.

    Raises:
        UserError: `source` is missing or holds something else.
    """
    tensors, sha256 = read_torch(source)
    save_inception(target, from_pytorch(tensors), source_sha256=sha256)
    return sha256


def from_pytorch(tensors: dict[str, Any]) -> Weights:
    """Fold each batch norm into the convolution before it, in float64.

    Returns:
        Kernels [height width in out] and biases, float32, by their names in `weight_shapes`.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    weights = {}
    try:
        for name in weight_shapes():
            layer, kind = name.rsplit(".", 1)
            value = _kernel(tensors, layer) if kind == "kernel" else _bias(tensors, layer)
            weights[name] = np.ascontiguousarray(value, np.float32)
    except KeyError as error:
        raise UserError(f"Inception's weights lack {error}") from error
    for name, shape in weight_shapes().items():
        if weights[name].shape != shape:
            raise UserError(
                f"Inception's weights have {name} of shape {weights[name].shape}, wanted {shape}"
            )
    return weights


def _kernel(tensors: dict[str, Any], layer: str) -> np.ndarray:
    if layer == "fc":
        return _array(tensors, "fc.weight").T
    kernel = _array(tensors, f"{layer}.conv.weight")  # out in height width
    return np.transpose(kernel, (2, 3, 1, 0)) * _scale(tensors, layer)


def _bias(tensors: dict[str, Any], layer: str) -> np.ndarray:
    mean = _array(tensors, f"{layer}.bn.running_mean")
    return _array(tensors, f"{layer}.bn.bias") - mean * _scale(tensors, layer)


def _scale(tensors: dict[str, Any], layer: str) -> np.ndarray:
    variance = _array(tensors, f"{layer}.bn.running_var")
    return _array(tensors, f"{layer}.bn.weight") / np.sqrt(variance + BATCH_NORM_EPSILON)


def _array(tensors: dict[str, Any], name: str) -> np.ndarray:
    return np.asarray(tensors[name], np.float64)


def _convert_and_say(source: Path, target: Path) -> str:
    sha256 = convert(source, target)
    summary = f"wrote {target}; sha256 of the source: {sha256}\n"
    if not sha256.startswith(PUBLISHED_SHA256):
        summary += (
            f"these are not the published weights, whose sha256 begins with {PUBLISHED_SHA256}: "
            "scores will compare with nobody else's\n"
        )
    return summary


if __name__ == "__main__":
    command.main(__doc__, "target", _convert_and_say)
