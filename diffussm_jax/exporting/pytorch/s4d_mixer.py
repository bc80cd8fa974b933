"""S4D along the rows of the grid of tokens and along its columns, as the mixer of a DiT."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.dit_blocks import MIXERS, Modulated
from diffussm_jax.exporting.pytorch.s4d import S4D


class S4DMixer(nn.Module):
    """W_out (y * silu(z)) of the sum y over the orders of scanning, and of a gate z."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        d, rate = model["width"], model["dt_rate"]
        orders = {"rows": [0], "columns": [1], "both": [0, 1]}[model["scan_orders"]]
        rates = rate if isinstance(rate, list) else [rate, rate]
        self.uz = nn.Linear(d, 2 * d)
        self.ssm = S4D(model, len(orders) * d, [rates[order] for order in orders])
        self.out = nn.Linear((2 if model["direction"] == "both" else 1) * d, d)
        self.orders = orders

    def forward(self, x: Tensor, grid: Grid, modulated: Modulated) -> Tensor:
        b, l, _ = x.shape
        u, z = self.uz(modulated(x)).chunk(2, dim=-1)
        scanned = [transposed(u, grid) if order else u for order in self.orders]
        y = self.ssm(torch.cat(scanned, dim=-1))  # b l r orders*d
        parts = zip(self.orders, y.chunk(len(self.orders), dim=-1))
        y = sum(transposed(part, grid[::-1]) if order else part for order, part in parts)
        return self.out((y * F.silu(z)[:, :, None]).reshape(b, l, -1))


def transposed(x: Tensor, grid: Grid) -> Tensor:
    """The tokens [b l ...] of a grid column after column, from row after row."""
    return x.unflatten(1, grid).transpose(1, 2).flatten(1, 2)


MIXERS["s4d"] = S4DMixer
