"""Multi-head attention, the mixer of DiT."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from diffussm_jax.exporting.pytorch.backbone import Grid
from diffussm_jax.exporting.pytorch.dit_blocks import MIXERS, Modulated


class Attention(nn.Module):
    """Each token attends to all tokens."""

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        d, self.num_heads = model["width"], model["num_heads"]
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor, grid: Grid, modulated: Modulated) -> Tensor:
        b, l, d = x.shape
        q, k, v = self.qkv(modulated(x)).reshape(b, l, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)  # b heads l d/heads
        return self.out(y.transpose(1, 2).reshape(b, l, d))


MIXERS["attention"] = Attention
