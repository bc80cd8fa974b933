"""ImageNet at 256 x 256: class-conditional FCDM-XL on VAE latents, convolutions alone in a U.

FCDM is Kwon et al., Reviving ConvNeXt for efficient convolutional diffusion models (arXiv
2603.09408), with the sizes and the recipe of its released code, which is DiT's but for the steps.

Reproduces:     FID 10.72 after 102M images (400,000 steps) and 7.91 after 256M, both without
                guidance; FID 2.03 with guidance after 512M.
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/fcdm256.py --workdir=runs/fcdm256
Other sizes:    configs/fcdm256.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import imagenet256
from diffussm_jax.config import FCDM_SIZES


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    if size not in FCDM_SIZES:
        raise ValueError(f"configs/fcdm256.py takes one of {', '.join(FCDM_SIZES)}; got {size!r}")
    config = imagenet256.get_config()
    config.model.name = "dit"
    config.model.levels, config.model.width = FCDM_SIZES[size]
    config.model.mixer = "convnext"
    config.model.modulate_convolved = True
    config.model.mlp_ratio = 0
    config.model.position = "none"
    config.training.num_steps = 2_000_000  # 512M images
    return config
