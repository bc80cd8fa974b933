"""Networks of one stack of equal blocks."""

from collections.abc import Callable

from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import (
    Config,
    Grid,
    channels_of,
    conditions_of,
    to_image,
    to_rows,
)
from diffussm_jax.exporting.pytorch.layers import ConditionEmbeddings, Modulation, modulate


class Isotropic(ConditionEmbeddings):
    """A stack of equal blocks, which read rows x, a condition c and the grid of tokens.

    Args:
        group_size: tokens that are one row.
        position: gives the code of the rows that is added to them.
        make_block: makes one of the blocks.
    """

    def __init__(
        self,
        config: Config,
        *,
        group_size: int,
        num_blocks: int,
        position: Callable[[Grid], Tensor],
        make_block: Callable[[], nn.Module],
    ):
        model, (channels, out_channels) = config["model"], channels_of(config)
        d, self.patch_size = model["width"], model["patch_size"]
        super().__init__(conditions_of(config), config["data"]["num_classes"], d)
        features = group_size * self.patch_size**2
        self.embed = nn.Linear(features * channels, d)
        self.blocks = nn.ModuleList(make_block() for _ in range(num_blocks))
        self.modulation = Modulation(d, 2)
        self.head = nn.Linear(d, features * out_channels)
        self.group_size, self.position = group_size, position
        self.has_positions = model["position"] != "none"

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The output [b o h w] for images [b c h w], what is told of times [b k], classes [b]."""
        grid = x_t.shape[2] // self.patch_size, x_t.shape[3] // self.patch_size
        x = self.embed(to_rows(x_t, self.patch_size, self.group_size))
        if self.has_positions:
            x = x + self.position(grid).to(x)
        c = self.embed_conditions(t, y)
        for block in self.blocks:
            x = block(x, c, grid)
        return to_image(self.head(modulate(x, *self.modulation(c))), grid, self.patch_size)
