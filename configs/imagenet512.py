"""ImageNet at 512 x 512: class-conditional DiffuSSM-XL on VAE latents.

Reproduces:     with guidance FID 3.41, sFID 5.84, IS 255.1, precision 0.85, recall 0.49 after 302M
                images.
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/imagenet512.py --workdir=runs/in512
Other sizes:    configs/imagenet512.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import imagenet256


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    config = imagenet256.get_config(size)
    config.data.image_size = 512
    config.model.remat = "full"
    config.training.num_steps = 1_179_688  # 302M images
    return config
