"""ImageNet at 256 x 256: class-conditional DiffuSSM-XL that draws an image in one call.

Reproduces:     nothing, since no published mean flow is free of attention. Those of attention have
                FID 3.43 (MeanFlow-XL/2) and 1.72 (iMF-XL/2) with one call.
Latents first:  the command below with --mode=encode instead of --workdir, once
Command:        python -m diffussm_jax.main --config=configs/mean_flow256.py --workdir=runs/mean256
From a flow:    add --config.training.init_from=runs/flow256
Other sizes:    configs/mean_flow256.py:S, :B, :L
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import flow256


def get_config(size: str = "XL") -> ml_collections.ConfigDict:
    config = flow256.get_config(size)
    config.diffusion.process = "mean_flow"
    config.diffusion.time_sampling = "logit_normal"
    config.diffusion.time_mean = -0.4
    config.diffusion.weighting = "adaptive"
    config.guidance.max_scale = 8.0
    config.sample.sampler = "euler"
    config.sample.steps = 1
    config.sample.cfg_scale = 2.0
    return config
