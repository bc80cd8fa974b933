"""DiCo's mixer: a convolution whose channels are gated by their means."""

from typing import Any

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.convolutions import as_image, as_tokens, depthwise
from diffussm_jax.exporting.pytorch.dit_blocks import MIXERS, Modulated
from diffussm_jax.exporting.pytorch.layers import gelu


class DiCo(nn.Module):
    """W_out (y . sigmoid(W_gate mean of y over all tokens)), where y = gelu(K * W_in x)."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        d = model["width"]
        self.enter = nn.Linear(d, d)
        self.depthwise = depthwise(d, model["kernel_size"] or 3)
        self.gate = nn.Linear(d, d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, grid: Grid, modulated: Modulated) -> Tensor:
        y = gelu(as_tokens(self.depthwise(as_image(self.enter(modulated(x)), grid))))
        return self.out(y * torch.sigmoid(self.gate(y.mean(dim=1, keepdim=True))))


MIXERS["dico"] = DiCo
