"""Your own folder of images at 256 x 256: unconditional DiffuSSM-B on VAE latents.

The recipe is the paper's; DiffuSSM-B trains on one TPU host, and configs/imagenet256.py has the
larger sizes.

Data:           D="--config=configs/folder256.py --config.data.name=folder:PATH"
Latents first:  python -m diffussm_jax.main $D --mode=encode
Command:        python -m diffussm_jax.main $D --workdir=runs/mine
Classes:        add --config.data.num_classes=NUMBER to D, and each sub-folder is a class
Held out:       add --config.data.split='train[2%:]' --config.data.eval_split='train[:2%]' to D
Expected time:  not yet measured.
Expected score: not yet measured.
"""

import ml_collections

from configs import common
from diffussm_jax.config import SIZES


def get_config() -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.depth, config.model.width = SIZES["B"]
    config.data.name = "folder:images"
    config.data.space = "latents"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.num_classes = 0
    config.data.eval_split = None
    return config
