"""Textures of 16 x 16 pixels, learnt from crops of bricks and gravel, to draw tiles and strips of.

It trains in eight minutes on two quiet cores (170 images a second).

Commands:  python -m examples.textures runs/textures
           python -m diffussm_jax.main --config=configs/textures.py --workdir=runs/textures/run
           and the same command with --mode=sample --config.sample.wrap=xy
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.data.name = "folder:runs/textures/images"
    config.data.data_dir = "runs/textures/tfds"
    config.data.image_size = 16
    config.data.num_classes = 2
    config.data.eval_split = None
    config.data.flip = True
    config.training.num_steps = 2500
    config.training.sample_every = 2500
    config.sample.num = 64
    config.sample.batch_size = 64
    config.sample.steps = 25
    config.sample.cfg_scale = 1.0
    return config
