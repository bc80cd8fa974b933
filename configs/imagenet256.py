"""ImageNet at 256 x 256: class-conditional DiffuSSM-XL on VAE latents.

Reproduces:     FID 9.07, sFID 5.52, IS 118.3 after 660M images; with guidance FID 2.28, sFID 4.49,
                IS 259.1, precision 0.86, recall 0.56.
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/imagenet256.py --workdir=runs/in256
Other sizes:    configs/imagenet256.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import common
from diffussm_jax.config import SIZES


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise ValueError(f"configs/imagenet256.py takes one of {', '.join(SIZES)}, got {size!r}")
    config = common.get_config()
    config.model.depth, config.model.width = SIZES[size]
    config.model.remat = "dots"
    config.data.name = "imagenet2012"
    config.data.space = "latents"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.eval_split = "validation"
    config.training.num_steps = 2_578_125  # 660M images
    config.mesh.fsdp = 16  # the parameters, EMA and Adam's moments of XL take 10.7 GB
    return config
