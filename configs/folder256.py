"""Your own folder of images at 256 x 256, unconditional DiffuSSM-B on VAE latents, with the paper's recipe.

Reproduces:     nothing; DiffuSSM-B trains on one TPU host. configs/imagenet256.py has the larger sizes.
Command:        F="--config=configs/folder256.py --config.data.name=folder:PATH"
                python -m diffussm_jax.main $F --mode=encode
                python -m diffussm_jax.main $F --workdir=runs/mine
                With sub-folders as classes: --config.data.num_classes=NUMBER in both.
                A part held out: --config.data.split='train[2%:]' --config.data.eval_split='train[:2%]'
Expected time:  not yet measured.  Score: not yet measured.
"""

from configs import common
from diffussm_jax.config import SIZES


def get_config():
    config = common.get_config()
    config.model.depth, config.model.width = SIZES["B"]
    config.data.name = "folder:images"
    config.data.space = "latents"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.num_classes = 0
    config.data.eval_split = None
    return config
