"""The names and layouts of DiT's weights as they were released, and our own."""

from collections.abc import Mapping

import numpy as np

# Our name of a layer, and its name in the released code.
LAYERS = {
    "embed": "x_embedder.proj",
    "timestep.hidden": "t_embedder.mlp.0",
    "timestep.out": "t_embedder.mlp.2",
    "modulation.linear": "final_layer.adaLN_modulation.1",
    "head": "final_layer.linear",
}
BLOCK_LAYERS = {
    "modulation.linear": "adaLN_modulation.1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
LABELS, POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"

Tensors = dict[str, np.ndarray]


def from_released(weights: Mapping[str, np.ndarray], *, depth: int) -> Tensors:
    """Our parameters by their names in an export; those of the blocks are stacked.

    Raises:
        KeyError: a weight is missing.
    """
    tensors = {"label.table": weights[LABELS]}
    for ours, theirs in LAYERS.items():
        tensors[f"{ours}.kernel"] = _kernel(weights[f"{theirs}.weight"])
        tensors[f"{ours}.bias"] = weights[f"{theirs}.bias"]
    for ours, theirs in BLOCK_LAYERS.items():
        names = [f"blocks.{layer}.{theirs}" for layer in range(depth)]
        kernels = [_kernel(weights[f"{name}.weight"]) for name in names]
        tensors[f"blocks.{ours}.kernel"] = np.stack(kernels)
        tensors[f"blocks.{ours}.bias"] = np.stack([weights[f"{name}.bias"] for name in names])
    return tensors


def to_released(tensors: Mapping[str, np.ndarray], *, depth: int, patch_size: int) -> Tensors:
    """The inverse of `from_released`; the position table, which is computed, is not among them."""
    weights = {LABELS: tensors["label.table"]}
    for ours, theirs in LAYERS.items():
        weights[f"{theirs}.weight"] = tensors[f"{ours}.kernel"].T
        weights[f"{theirs}.bias"] = tensors[f"{ours}.bias"]
    for ours, theirs in BLOCK_LAYERS.items():
        for layer in range(depth):
            name = f"blocks.{layer}.{theirs}"
            weights[f"{name}.weight"] = tensors[f"blocks.{ours}.kernel"][layer].T
            weights[f"{name}.bias"] = tensors[f"blocks.{ours}.bias"][layer]
    patches = f"{LAYERS['embed']}.weight"
    windows = weights[patches].reshape(len(weights[patches]), patch_size, patch_size, -1)
    weights[patches] = windows.transpose(0, 3, 1, 2)
    return weights


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[in out] from [out in].

    The patch embedding is a convolution [out in h w]; here its window comes before its channels.
    """
    if weight.ndim == 4:
        weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return weight.T
