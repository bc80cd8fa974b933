"""The published PyTorch copy of Inception's weights to safetensors: python -m diffussm_jax.convert.inception SOURCE TARGET

Once, where PyTorch is installed (`pip install -e '.[parity]'`); what evaluates reads the result alone.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from diffussm_jax.convert.torch_file import read_torch
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.inception import PUBLISHED_SHA256, Weights, save_weights, weight_shapes

BATCH_NORM_EPSILON = 1e-3


def convert(source: Path, target: Path) -> str:
    """Write the weights of `source` to `target`; gives the sha256 of `source`.

    Raises:
        UserError: `source` is missing or holds something else.
    """
    tensors, sha256 = read_torch(source)
    save_weights(target, from_pytorch(tensors), source_sha256=sha256)
    return sha256


def from_pytorch(tensors: dict[str, Any]) -> Weights:
    """Kernels [height width in out] with the batch norm's scale in them, and biases; folded in float64.

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        sha256 = convert(arguments.source, arguments.target)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"wrote {arguments.target}; sha256 of the source: {sha256}\n")
    if not sha256.startswith(PUBLISHED_SHA256):
        sys.stdout.write(
            f"these are not the published weights, whose sha256 begins with {PUBLISHED_SHA256}: "
            "scores will compare with nobody else's\n"
        )


if __name__ == "__main__":
    main()
