"""The demo: class-conditional DiffuSSM on scikit-learn's 8 x 8 digits, in pixel space.

It trains in minutes on a laptop's CPU. It reproduces nothing of the paper: it takes what learns
best in two minutes (v-prediction, cosine schedule).

Command:  make demo
which is  python -m diffussm_jax.main --config=configs/digits.py --workdir=runs/digits
then      the same command with --mode=sample
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.depth = 4
    config.model.width = 64
    config.model.state_size = 16
    config.model.dtype = "float32"
    config.model.scan_unroll = 4
    config.diffusion.prediction = "v"
    config.diffusion.schedule = "cosine"
    config.diffusion.variance = "fixed_small"
    config.diffusion.clip_x0 = True
    config.data.name = "digits"
    config.data.flip = False  # a mirrored digit is no digit
    config.optimizer.learning_rate = 3e-3
    config.training.num_steps = 1500
    config.training.batch_size = 32
    config.training.ema_decay = 0.995
    config.training.eval_every = 500
    config.training.sample_every = 500
    config.checkpoint.every = 500
    config.sample.num = 100
    config.sample.batch_size = 100
    config.sample.sampler = "ddim"
    config.sample.steps = 50
    config.sample.cfg_scale = 1.5
    config.evaluate.features = "classifier"
    return config
