"""DiT's blocks: a mixer of tokens and an MLP, each modulated and gated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.layers import Modulation, gelu, modulate, sincos2d

# What a mixer applies once, to the tokens or to what it makes of them first.
Modulated = Callable[[Tensor], Tensor]
# What mixes tokens [b l d] of a grid, by its name; it is made of the model's section.
MIXERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {}


class TransformerBlock(nn.Module):
    """A mixer, whose parameters are under its name, then an MLP if there is one."""

    def __init__(self, model: dict[str, Any], mixer_name: str):
        super().__init__()
        d, self.has_mlp = model["width"], model["mlp_ratio"] > 0
        self.modulation = Modulation(d, 6 if self.has_mlp else 3)
        self.add_module(mixer_name, MIXERS[mixer_name](model))
        if self.has_mlp:
            self.mlp_in = nn.Linear(d, model["mlp_ratio"] * d)
            self.mlp_out = nn.Linear(model["mlp_ratio"] * d, d)
        self.mixer_name = mixer_name

    def forward(self, x: Tensor, c: Tensor, grid: Grid) -> Tensor:
        modulation = self.modulation(c)
        shift, scale, gate = modulation[:3]
        x = x + gate * self.mix(x, shift, scale, grid)
        if not self.has_mlp:
            return x
        shift, scale, gate = modulation[3:]
        return x + gate * self.mlp_out(gelu(self.mlp_in(modulate(x, shift, scale))))

    def mix(self, x: Tensor, shift: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        mixer = self.get_submodule(self.mixer_name)
        return mixer(x, grid, lambda rows: modulate(rows, shift, scale))


class PatternBlock(nn.Module):
    """The blocks of a pattern of mixers, which the depth repeats."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        for index, name in enumerate(pattern_of(model)):
            self.add_module(f"layer_{index}", TransformerBlock(model, name))

    def forward(self, x: Tensor, c: Tensor, grid: Grid) -> Tensor:
        for layer in self.children():
            x = layer(x, c, grid)
        return x


def pattern_of(model: dict[str, Any]) -> list[str]:
    """The mixers of the first layers, which those of the others repeat."""
    return model["mixers"] or [model["mixer"]]


def make_block(model: dict[str, Any]) -> nn.Module:
    pattern = pattern_of(model)
    return TransformerBlock(model, pattern[0]) if len(pattern) == 1 else PatternBlock(model)


def position_code(grid: Grid, num_features: int, scale: float | list[float]) -> Tensor:
    """The code in the order of DiT's: column before row, sines before cosines."""
    row_cos, row_sin, column_cos, column_sin = sincos2d(grid, 1, num_features, scale).chunk(4, -1)
    return torch.cat([column_sin, column_cos, row_sin, row_cos], dim=-1)
