"""FCDM's mixer: depthwise convolution, inverted bottleneck, global response normalisation."""

from typing import Any

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.convolutions import as_image, as_tokens, depthwise
from diffussm_jax.exporting.pytorch.dit_blocks import MIXERS, Modulated
from diffussm_jax.exporting.pytorch.layers import gelu, layer_norm


class ConvNeXt(nn.Module):
    """W_out GRN(gelu(W_widen LayerNorm(K * x))); FCDM modulates this LayerNorm."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        d, self.is_modulated_behind = model["width"], model["modulate_convolved"]
        self.depthwise = depthwise(d, model["kernel_size"] or 7)
        self.widen = nn.Linear(d, 3 * d)
        self.norm = GlobalResponseNorm(3 * d)
        self.out = nn.Linear(3 * d, d)

    def forward(self, x: Tensor, grid: Grid, modulated: Modulated) -> Tensor:
        if self.is_modulated_behind:
            y = modulated(self.convolve(x, grid))
        else:
            y = layer_norm(self.convolve(modulated(x), grid))
        return self.out(self.norm(gelu(self.widen(y))))

    def convolve(self, x: Tensor, grid: Grid) -> Tensor:
        return as_tokens(self.depthwise(as_image(x, grid)))


class GlobalResponseNorm(nn.Module):
    """x + scale x n + bias, where n is a channel's norm, divided by the mean over channels."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(num_channels))
        self.bias = nn.Parameter(torch.empty(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(dim=1, keepdim=True)
        response = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return x * (1 + self.scale * response) + self.bias


MIXERS["convnext"] = ConvNeXt
