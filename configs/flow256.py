"""ImageNet at 256 x 256: class-conditional DiffuSSM-XL, trained as a flow (SiT's objective).

Reproduces:     nothing, since the paper trains DDPM's process. SiT-XL/2, of attention, has FID 8.3
                after 1,792M images (SiT, table 1), and at guidance 1.5 2.15 by an ODE solver and
                2.06 by 250 steps of euler_maruyama (table 7). Here images are drawn by Heun.
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
