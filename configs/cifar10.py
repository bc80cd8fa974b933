"""CIFAR-10 at 32 x 32: class-conditional DiffuSSM-S in pixel space, with the paper's recipe.

Reproduces:     nothing, since the paper has no CIFAR-10. An image has 1,024 tokens, as many as at
                256 x 256 in latent space.
Data first:     python -c "import tensorflow_datasets as tfds
                tfds.builder('cifar10', file_format='array_record').download_and_prepare()"
Command:        python -m diffussm_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import common
from diffussm_jax.config import SIZES


def get_config() -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.depth, config.model.width = SIZES["S"]
    config.diffusion.clip_x0 = True
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    return config
