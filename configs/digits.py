"""Class-conditional DiffuSSM on scikit-learn's 8x8 digits, in pixel space: the demo, minutes on a laptop CPU.

Reproduces nothing of the paper: it takes what learns best in two minutes (v-prediction, cosine schedule).
Command:  make demo
       =  python -m diffussm_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from configs import common


def get_config():
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
