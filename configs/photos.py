"""The path from a folder of images to decoded samples, in a minute on a laptop's CPU.

It shows that every step works and learns nothing worth seeing.

Commands:  python -m examples.photos runs/photos
           C=--config=configs/photos.py
           python -m diffussm_jax.main $C --mode=encode
           python -m diffussm_jax.main $C --workdir=runs/photos/run
           python -m diffussm_jax.main $C --workdir=runs/photos/run --mode=sample
"""

import ml_collections

from configs import folder256


def get_config() -> ml_collections.ConfigDict:
    config = folder256.get_config()
    config.data.name = "folder:runs/photos/images"
    config.data.data_dir = "runs/photos/tfds"
    config.data.image_size = 64
    config.data.num_classes = 3
    config.autoencoder.name = "runs/photos/autoencoder"
    config.model.depth = 2
    config.model.width = 64
    config.model.state_size = 16
    config.model.dtype = "float32"
    config.model.scan_unroll = 2
    config.training.num_steps = 20
    config.training.batch_size = 8
    config.training.log_every = 5
    config.sample.num = 6
    config.sample.batch_size = 6
    config.sample.sampler = "ddim"
    config.sample.steps = 20
    return config
