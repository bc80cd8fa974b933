"""ImageNet at 256 x 256: class-conditional DiCo-XL on VAE latents, convolutions alone in a U.

DiCo is Ai et al., DiCo: revitalizing ConvNets for scalable and efficient diffusion modeling (arXiv
2505.11196), with the sizes of its released code, and DiT's recipe.

Reproduces:     FID 11.67 after 102M images (400,000 steps) without guidance.
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/dico256.py --workdir=runs/dico256
Other sizes:    configs/dico256.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import imagenet256
from diffussm_jax.config import DICO_SIZES


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    if size not in DICO_SIZES:
        raise ValueError(f"configs/dico256.py takes one of {', '.join(DICO_SIZES)}; got {size!r}")
    config = imagenet256.get_config()
    config.model.name = "dit"
    config.model.levels, config.model.width = DICO_SIZES[size]
    config.model.last_stage = "wide"
    config.model.mixer = "dico"
    config.model.mlp_ratio = 2
    config.model.position = "none"
    config.training.num_steps = 400_000  # 102M images
    return config
