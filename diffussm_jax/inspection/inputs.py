"""The noised images that a model is looked at with: the same ones at every noise level."""

import dataclasses
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from diffussm_jax.config import Config, DiffusionConfig
from diffussm_jax.data.faults import Faults
from diffussm_jax.data.pipeline import open_of_one_size, read_good
from diffussm_jax.diffusion import create_process
from diffussm_jax.diffusion.process import NoisedBatch
from diffussm_jax.errors import UserError
from diffussm_jax.inspection.geometry import spread
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.inputs import image_labels
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.sampling.program import sampling_program
from diffussm_jax.shapes import Images, Labels
from diffussm_jax.training.objective import clean_example
from diffussm_jax.training.state import abstract_model

logger = logging.getLogger(__name__)


class CleanImages(NamedTuple):
    """Images as the model denoises them, their labels, and the words for where they are from."""

    x0: Images
    y: Labels | None
    origin: str


def clean_images(config: Config, model: TrainedModel) -> CleanImages:
    """Read `inspect.num` images of the held-out split, or draw them where its data is not here.

    Raises:
        UserError: the split has fewer images.
    """
    split = config.data.eval_split or config.data.split
    try:
        source = open_of_one_size(config, split)
    except UserError as error:
        logger.info("the model draws the images, since its data is not here: %s", error)
        return _drawn(config, model)
    num = config.inspect.num
    if num > len(source):
        raise UserError(
            f"config.inspect.num must be at most {len(source)}, the images of the split "
            f"{split!r}, got {num}"
        )
    faults = Faults(config.data.on_error, num_records=len(source))
    examples = [read_good(source, int(i), False, faults) for i in spread(num, len(source))]
    stacked = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    keys = jax.random.split(jax.random.key(config.seed), num)
    x0 = jax.vmap(lambda key, example: clean_example(model.config, key, example))(keys, stacked)
    y = jnp.asarray(stacked["label"]) if model.config.data.num_classes else None
    return CleanImages(x0, y, f"split {split!r} of {source.facts['source']}")


def _drawn(config: Config, model: TrainedModel) -> CleanImages:
    options = dataclasses.replace(
        config.sample, num=config.inspect.num, image_size=None, wrap=None, window_overlap=None
    )
    if options.autoguidance is not None:
        options = dataclasses.replace(options, autoguidance=None, cfg_scale=1.0)
    indices = np.arange(config.inspect.num, dtype=np.int32)
    labels = image_labels(options, model.config.data.num_classes, indices)
    device = jax.local_devices()[0]
    graphdef, _ = abstract_model(model.config)
    run = sampling_program(model.config, graphdef, make_mesh(devices=[device]), options)
    x0 = run(jax.device_put(model.params, device), None, options.seed, indices, labels)
    return CleanImages(x0, None if labels is None else jnp.asarray(labels), "drawn by the model")


def noised(config: Config, images: CleanImages, level: float) -> NoisedBatch:
    """The images with the time that a noise level has, and noise that is the same at all levels."""
    num = len(images.x0)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    eps = jax.random.normal(key, images.x0.shape)
    t = jnp.stack([time_of(config.diffusion, level)] * num)
    scale = None if config.guidance.max_scale is None else jnp.ones(num)
    return NoisedBatch(images.x0, t, eps, images.y, scale)


def time_of(config: DiffusionConfig, level: float) -> Num[Array, "*k"]:
    """The time at which sigma / alpha is the closest to a noise level."""
    if config.process == "gaussian":
        process, steps = create_process(config), jnp.arange(config.num_steps)
        levels = process.noise_level(process.conditions(steps))
        return jnp.argmin(jnp.abs(jnp.log(levels / level)))
    t = jnp.asarray(level / (1 + level), jnp.float32)
    return t if config.process == "flow" else jnp.stack([t, t])
