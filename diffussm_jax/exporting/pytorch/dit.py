"""DiT: patches through a stack of its blocks."""

from diffussm_jax.exporting.pytorch.backbone import BACKBONES, Config
from diffussm_jax.exporting.pytorch.dit_blocks import make_block, pattern_of, position_code
from diffussm_jax.exporting.pytorch.isotropic import Isotropic


def make_dit(config: Config) -> Isotropic:
    model = config["model"]
    return Isotropic(
        config,
        group_size=1,
        num_blocks=model["depth"] // len(pattern_of(model)),
        position=lambda grid: position_code(grid, model["width"], model["position_scale"]),
        make_block=lambda: make_block(model),
    )


BACKBONES["dit"] = make_dit
