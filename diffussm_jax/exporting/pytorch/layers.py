"""Layers that all models share: embeddings of scalars, classes and places, and modulation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALAR_FEATURES = 256


def sinusoids(positions: Tensor, num_features: int) -> Tensor:
    """cos and sin of each position at num_features / 2 frequencies from 1 to 1 / 10000."""
    half = num_features // 2
    exponents = torch.arange(half, dtype=torch.float64) / half
    frequencies = torch.exp(-math.log(10_000) * exponents).float()
    angles = positions[:, None] * frequencies.to(positions.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos2d(
    grid: tuple[int, int], group_size: int, num_features: int, scale: float | list[float]
) -> Tensor:
    """The code of the centre of each group of tokens, one half of its row, one of its column."""
    scales = scale if isinstance(scale, list) else [scale, scale]
    along = [(torch.arange(n) + 0.5) * x - 0.5 for n, x in zip(grid, scales)]
    centres = [x.reshape(-1, group_size).mean(dim=1) for x in torch.meshgrid(*along, indexing="ij")]
    return torch.cat([sinusoids(x, num_features // 2) for x in centres], dim=-1)


class ScalarEmbedding(nn.Module):
    """Features of a scalar that the model is told, as the time, through two dense layers."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(SCALAR_FEATURES, width)
        self.out = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        return self.out(F.silu(self.hidden(sinusoids(values, SCALAR_FEATURES))))


class LabelEmbedding(nn.Module):
    """A vector for each class and, in the last row, one for "no class"."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_classes + 1, width))

    def forward(self, y: Tensor) -> Tensor:
        return self.table[y]


class ConditionEmbeddings(nn.Module):
    """The sum of the embeddings of what a model is told: scalars t [b k] and classes y [b]."""

    def __init__(self, conditions: list[str], num_classes: int, width: int):
        super().__init__()
        for name in conditions:
            self.add_module(name, ScalarEmbedding(width))
        if num_classes:
            self.label = LabelEmbedding(num_classes, width)
        self.conditions = conditions

    def embed_conditions(self, t: Tensor, y: Tensor | None) -> Tensor:
        embeddings = [self.get_submodule(name) for name in self.conditions]
        c = sum(embed(column) for embed, column in zip(embeddings, t.T))
        return c if y is None else c + self.label(y)


class Modulation(nn.Module):
    """Several vectors of the width of x, [b 1 d], from the condition c [b d]."""

    def __init__(self, width: int, num: int):
        super().__init__()
        self.linear = nn.Linear(width, num * width)
        self.num = num

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(c))[:, None].chunk(self.num, dim=-1)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x) * (1 + scale) + shift


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
