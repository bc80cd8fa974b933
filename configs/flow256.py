"""ImageNet at 256 x 256: class-conditional DiffuSSM-XL, trained as a flow (SiT's recipe).

Reproduces:     nothing, since the paper trains DDPM's process. SiT-XL/2, of attention, has FID 8.3
                after 1,792M images, and with guidance 2.06 (SiT, tables 4 and 5).
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/flow256.py --workdir=runs/flow256
Other sizes:    configs/flow256.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import imagenet256


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    config = imagenet256.get_config(size)
    config.diffusion.process = "flow"
    config.diffusion.prediction = "v"
    config.diffusion.variance = "none"
    config.sample.sampler = "heun"
    config.sample.steps = 50
    return config
