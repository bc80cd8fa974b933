"""Delta-ConvFusion's mixer: a pyramid of gated convolutions, and the mean of all tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.convolutions import as_image, as_tokens, depthwise
from diffussm_jax.exporting.pytorch.dit_blocks import MIXERS, Modulated


class DeltaConv(nn.Module):
    """W_out (stages of W_narrow x, side by side) + W_mean (mean of x over all tokens)."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        d, self.pyramid, self.gate = model["width"], model["pyramid"], model["delta_gate"]
        self.narrow = nn.Linear(d, d // 2)
        for index in range(len(self.pyramid)):
            stage = depthwise(d // 2, model["kernel_size"] or 13, bias=False)
            self.add_module(f"stage_{index}", stage)
        self.out = nn.Linear(d // 4 * len(self.pyramid), d)
        self.mean = nn.Linear(d, d)

    def forward(self, x: Tensor, grid: Grid, modulated: Modulated) -> Tensor:
        x = modulated(x)
        u = as_image(self.narrow(x), grid)
        stages = [self.stage(index, u) for index in range(len(self.pyramid))]
        return self.out(as_tokens(torch.cat(stages, dim=1))) + self.mean(x.mean(1, keepdim=True))

    def stage(self, index: int, u: Tensor) -> Tensor:
        factor = self.pyramid[index]
        y = self.get_submodule(f"stage_{index}")(F.avg_pool2d(u, factor))
        value, gate = y.chunk(2, dim=1)
        scale = gate.shape[1] ** 0.5
        y = (
            value
            * {
                "scaled": lambda: gate / scale,
                "released": lambda: gate * scale,
                "sigmoid": lambda: torch.sigmoid(gate),
            }[self.gate]()
        )
        return F.interpolate(y, scale_factor=factor, mode="bilinear") if factor > 1 else y


MIXERS["delta_conv"] = DeltaConv
