"""The demo in one call: a mean flow on scikit-learn's 8 x 8 digits, in pixel space.

Its samples come from a single call of the network each (docs/objectives.md).

Command:  make one-step
which is  python -m diffussm_jax.main --config=configs/one_step.py --workdir=runs/one_step
then      the same command with --mode=sample
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.diffusion.process = "mean_flow"
    config.diffusion.variance = "none"
    config.diffusion.weighting = "adaptive"
    config.guidance.scale = 1.25
    config.optimizer.schedule = "cosine"
    config.training.num_steps = 3000
    config.sample.sampler = "euler"
    config.sample.steps = 1
    config.sample.cfg_scale = 1.0
    return config
