"""DiT's blocks in the stages of a U, as FCDM and DiCo have theirs."""

import torch
from torch import Tensor, nn

from diffussm_jax.exporting.pytorch.backbone import (
    BACKBONES,
    Config,
    Grid,
    channels_of,
    conditions_of,
    to_image,
    to_rows,
)
from diffussm_jax.exporting.pytorch.dit_blocks import make_block, pattern_of, position_code
from diffussm_jax.exporting.pytorch.layers import ConditionEmbeddings, Modulation, modulate


class Conv3x3(nn.Conv2d):
    """A convolution of rows [b l d] of a grid; beyond the edges there are zeros."""

    def __init__(self, num_inputs: int, num_outputs: int, *, bias: bool = True):
        super().__init__(num_inputs, num_outputs, 3, padding=1, bias=bias)

    def on(self, x: Tensor, grid: Grid) -> Tensor:
        return self(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class UShaped(ConditionEmbeddings):
    """Stages of blocks down to the middle one, and up again with what the way down left.

    Each level below the outermost has half the grid, twice the width and embeddings of its own.
    """

    def __init__(self, config: Config):
        model, (channels, out_channels) = config["model"], channels_of(config)
        d, self.patch_size, depths = model["width"], model["patch_size"], model["levels"]
        given = conditions_of(config), config["data"]["num_classes"]
        super().__init__(*given, d)
        last = len(depths) - 1
        self.levels = [min(index, last - index) for index in range(last + 1)]
        self.widths = [2**level for level in self.levels]  # of the stages, in units of d
        is_wide = model["last_stage"] == "wide"
        self.widths[last] = 2 if is_wide else 1
        features = self.patch_size**2
        self.embed = Conv3x3(features * channels, d)
        for level in range(1, last // 2 + 1):
            self.add_module(f"level_{level}", ConditionEmbeddings(*given, 2**level * d))
        self.blocks = nn.ModuleDict(
            {f"stage_{i}": make_stage(model, *x) for i, x in enumerate(zip(depths, self.widths))}
        )
        self.resampling = make_resampling(d, last // 2, self.widths[::-1])
        self.out = None if is_wide else Conv3x3(d, d)
        self.modulation = Modulation(self.widths[last] * d, 2)
        self.head = Conv3x3(self.widths[last] * d, features * out_channels)
        self.position_scale = model["position_scale"] if model["position"] != "none" else None

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The output [b o h w] for images [b c h w], what is told of times [b k], classes [b]."""
        grid = x_t.shape[2] // self.patch_size, x_t.shape[3] // self.patch_size
        x = self.embed.on(to_rows(x_t, self.patch_size, 1), grid)
        if self.position_scale is not None:
            x = x + position_code(grid, x.shape[-1], self.position_scale).to(x)
        deeper = [self.get_submodule(f"level_{k}") for k in range(1, max(self.levels) + 1)]
        conditions = {2**k: z.embed_conditions(t, y) for k, z in enumerate([self, *deeper])}
        x = self.run_stages(x, conditions, grid)
        x = x if self.out is None else self.out.on(x, grid)
        x = modulate(x, *self.modulation(conditions[self.widths[-1]]))
        return to_image(self.head.on(x, grid), grid, self.patch_size)

    def run_stages(self, x: Tensor, conditions: dict[int, Tensor], grid: Grid) -> Tensor:
        left: list[Tensor] = []
        before = 0
        stages = zip(self.blocks.values(), self.levels, self.widths, strict=True)
        for stage, level, width in stages:
            if level > before:
                left.append(x)
                x = self.resampling[f"down_{level}"].on(x, grid)
                x = to_rows(x.transpose(1, 2).unflatten(2, grid), 2, 1)
                grid = grid[0] // 2, grid[1] // 2
            elif level < before:
                x = to_image(self.resampling[f"up_{before}"].on(x, grid), grid, 2)
                grid = 2 * grid[0], 2 * grid[1]
                x = torch.cat([x.flatten(2).transpose(1, 2), left.pop()], dim=-1)
                x = self.resampling[f"merge_{before}"](x)
            for block in stage:
                x = block(x, conditions[width], grid)
            before = level
        return x


def make_stage(model: dict, depth: int, width: int) -> nn.ModuleList:
    """The blocks of a stage; heads are of one width in all stages."""
    sizes = {name: width * model[name] for name in ("width", "num_heads")}
    num = depth // len(pattern_of(model))
    return nn.ModuleList(make_block({**model, **sizes}) for _ in range(num))


def make_resampling(width: int, num_levels: int, merged: list[int]) -> nn.ModuleDict:
    """What leads from each level to the next below, and back up beside what was left there."""
    layers: dict[str, nn.Module] = {}
    for level in range(1, num_levels + 1):
        d = 2 ** (level - 1) * width
        layers[f"down_{level}"] = Conv3x3(d, d // 2, bias=False)
        layers[f"up_{level}"] = Conv3x3(2 * d, 4 * d, bias=False)
        layers[f"merge_{level}"] = nn.Linear(2 * d, merged[level - 1] * width)
    return nn.ModuleDict(layers)


BACKBONES["dit"] = UShaped
