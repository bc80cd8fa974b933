"""ImageNet at 256 x 256: class-conditional DiT-XL/2 on VAE latents, the attention baseline.

Reproduces:     FID 9.62, sFID 6.85, IS 121.5, precision 0.67, recall 0.67 after 1,792M images;
                with guidance FID 2.27, sFID 4.60, IS 278.2, precision 0.83, recall 0.57 (DiT,
                table 2).
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/dit256.py --workdir=runs/dit256
Other sizes:    configs/dit256.py:S/2, :B/4, :L/1 ... (size/patch)
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import imagenet256
from diffussm_jax.config import DIT_SIZES

PATCH_SIZES = ("1", "2", "4")


def get_config(size: str = "XL/2") -> ml_collections.ConfigDict:
    name, _, patch_size = size.partition("/")
    if name not in DIT_SIZES or patch_size not in PATCH_SIZES:
        raise ValueError(
            f"configs/dit256.py takes one of {', '.join(DIT_SIZES)}, a slash and one of "
            f"{', '.join(PATCH_SIZES)}, as XL/2; got {size!r}"
        )
    config = imagenet256.get_config()
    config.model.name = "dit"
    config.model.depth, config.model.width, config.model.num_heads = DIT_SIZES[name]
    config.model.patch_size = int(patch_size)
    config.training.num_steps = 7_000_000  # 1,792M images
    return config
