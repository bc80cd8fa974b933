"""ImageNet at 512 x 512: class-conditional DiT-XL/2 on VAE latents, the attention baseline.

Reproduces:     with guidance FID 3.04, sFID 5.02, IS 240.8, precision 0.84, recall 0.54 after 768M
                images (DiT).
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/dit512.py --workdir=runs/dit512
Other sizes:    configs/dit512.py:S/2, :B/4, :L/1 ... (size/patch)
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import dit256


def get_config(size: str = "XL/2") -> ml_collections.ConfigDict:
    config = dit256.get_config(size)
    config.data.image_size = 512
    config.model.remat = "full"
    config.training.num_steps = 3_000_000  # 768M images
    return config
