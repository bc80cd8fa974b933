"""Fashion-MNIST: class-conditional DiffuSSM on 28 x 28 grey images, padded to 32 x 32, in pixels.

The real data on which recipes are compared (docs/evidence.md): its 166,400 images of training
suffice for a difference to show. It reproduces nothing of the paper: it is the demo's recipe (DDPM
with v-prediction and a cosine schedule) and a model of 1.06M parameters.

Data first:     python -m diffussm_jax.convert.fashion_mnist /usr/share/datasets/fashion-mnist \
                    ~/tensorflow_datasets
                with the files of Debian's package dataset-fashion-mnist, or from the web
                python -c "import tensorflow_datasets as tfds
                tfds.builder('fashion_mnist', file_format='array_record').download_and_prepare()"
Command:        python -m diffussm_jax.main --config=configs/fashion_mnist.py \
                    --workdir=runs/fashion_mnist
then            the same command with --mode=refstats, and with --mode=evaluate
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    config = common.get_config()
    config.model.depth = 6
    config.model.width = 96
    config.model.patch_size = 2
    config.model.state_size = 16
    config.model.dtype = "float32"
    config.model.scan_unroll = 6
    config.diffusion.prediction = "v"
    config.diffusion.schedule = "cosine"
    config.diffusion.variance = "fixed_small"
    config.diffusion.clip_x0 = True
    config.data.name = "fashion_mnist"
    config.data.image_size = 32
    config.data.pad = 2
    config.data.flip = False  # shoes point to the left
    config.data.in_memory = True
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    config.training.num_steps = 2600
    config.training.batch_size = 64
    config.training.ema_decay = 0.995
    config.training.eval_every = 650
    config.training.sample_every = 650
    config.checkpoint.every = 650
    config.sample.num = 100
    config.sample.batch_size = 100
    config.sample.sampler = "ddim"
    config.sample.steps = 20
    config.sample.cfg_scale = 1.5
    config.evaluate.features = "classifier"
    return config
