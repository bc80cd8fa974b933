"""A small classifier of a run's own classes, for data unlike Inception's, and for tests.

It is trained once, in a minute or two on small images, on the run's training images and kept in the
work directory, since scores by two classifiers do not compare. `evaluate.weights` names that of
another work directory, so that runs compare.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float, UInt8

from diffussm_jax.config import Config
from diffussm_jax.data.transforms import from_uint8, mirrored
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.image_sets import SourceImages, batches_of
from diffussm_jax.files import on_disk, one_writer, replacing, sha256_of
from diffussm_jax.files.paths import as_path
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.shapes import ceil_div

logger = logging.getLogger(__name__)

Params = dict[str, Any]

FILE = "classifier.safetensors"
WIDTHS = (32, 64, 128)  # features of the last convolutions, which see a side, half and a quarter
STEM_WIDTH, STEM_SIDE = 32, 8  # of convolutions before those, each of which halves a larger side
MAX_SIDE = 32  # larger images are averaged over squares to at most this side
MAX_IMAGES = 50_000  # of the training split to learn from
NUM_STEPS, NUM_EPOCHS = 500, 4  # of training; the longer of the two
BATCH_SIZE, LEARNING_RATE = 128, 2e-3
SEED = 0  # not the run's, so that runs of several seeds on the same data have the same classifier


def features(params: Params, images: UInt8[Array, "b h w c"]) -> dict[str, Array]:
    """Compute the features of `evaluation/features.py`.

    `pool` is the mean over places of the last convolution.

    Raises:
        UserError: the images have other channels than those that the classifier was trained on.
    """
    channels = params["conv0.kernel"].shape[2]
    if images.shape[-1] != channels:
        raise UserError(
            f"config.evaluate.features: the run's classifier takes images of {channels} channels, "
            f"got {images.shape[-1]}"
        )
    pool, logits = _forward(params, images)
    return {
        "pool": pool,
        "probabilities": jax.nn.softmax(logits),
        "classes": logits.argmax(axis=-1),
    }


def find_or_train(config: Config, workdir: Path | None) -> tuple[Params, dict[str, Any]]:
    """The classifier of a work directory and its facts; train it first if there is none.

    Instead it is read from `evaluate.weights`, where that is given. The facts are its checksum, its
    accuracy and the split that this was measured on.

    Raises:
        UserError: the data has no labels, or the file is damaged or of other classes.
    """
    if config.evaluate.weights is not None:
        return _read_given(as_path(config.evaluate.weights), config)
    if workdir is None or not config.data.num_classes:
        lacks = "--workdir, where it is kept" if workdir is None else "data.num_classes"
        raise UserError(f"config.evaluate.features: the classifier needs {lacks}")
    if config.drawn_size is not None:
        raise UserError(
            "config.evaluate.features: the run's classifier knows images of data.image_size = "
            f"{config.data.image_size} alone: leave sample.image_size out, take 'inception', or "
            "name in config.evaluate.weights one that was trained on images of that size"
        )
    path = workdir / "evaluation" / FILE
    if not path.exists() and is_first():
        with one_writer(path):
            if not path.exists():
                _train_to(path, config)
    wait_for_all("classifier")
    return _read(path)


def _read_given(path: Path, config: Config) -> tuple[Params, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"config.evaluate.weights: there is no file {path}")
    params, facts = _read(path)
    num_classes = params.get("head.bias", np.empty(0)).size
    if num_classes == 0 or num_classes != config.data.num_classes:
        raise UserError(
            f"config.evaluate.weights: {path} must be the {FILE} of a run with data.num_classes = "
            f"{config.data.num_classes}"
        )
    return params, facts


def _train_to(path: Path, config: Config) -> None:
    logger.info("training a classifier on the classes of %s (once)", config.data.name)
    params = train(config)
    held_out = config.data.eval_split or config.data.split
    accuracy = _accuracy(params, SourceImages(config, held_out))
    logger.info("it names the class of %.1f %% of %s", 100 * accuracy, held_out)
    arrays = {name: np.asarray(x) for name, x in params.items()}
    facts = {"accuracy": f"{accuracy:.4f}", "accuracy_on": held_out}
    with replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata=facts)


def _read(path: Path) -> tuple[Params, dict[str, Any]]:
    try:
        with on_disk(path) as local:
            with safetensors.safe_open(local, "numpy") as file:
                facts = dict(file.metadata() or {})
            params = safetensors.numpy.load_file(local)
            return params, facts | {"sha256": sha256_of(local)}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from error


def train(config: Config) -> Params:
    """Train by Adam on the cross entropy.

    The parameters are a function of the config's data.
    """
    source = SourceImages(config, config.data.split)
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.permutation(len(source))[:MAX_IMAGES])
    images, labels = source.examples(rows)
    num_steps = max(NUM_STEPS, NUM_EPOCHS * len(images) // BATCH_SIZE)
    params = _init(config)
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    optimizer = optax.adam(schedule)
    state = optimizer.init(params)

    @jax.jit
    def step(
        params: Params, state: optax.OptState, images: Array, labels: Array
    ) -> tuple[Params, optax.OptState]:
        gradient = jax.grad(_loss)(params, images, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for number in range(num_steps):
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        batch = images[chosen]
        if config.data.flip:
            flips = mirrored(SEED, start=number * BATCH_SIZE, num=BATCH_SIZE)
            batch = np.where(flips[:, None, None, None], batch[:, :, ::-1], batch)
        params, state = step(params, state, batch, labels[chosen])
    return params


def _init(config: Config) -> Params:
    init, params = jax.nn.initializers.he_normal(), {}
    widths = _widths(max(config.data.sides))
    keys = iter(jax.random.split(jax.random.key(SEED), len(widths) + 1))
    before = config.data.channels
    for number, width in enumerate(widths):
        params[f"conv{number}.kernel"] = init(next(keys), (3, 3, before, width))
        params[f"conv{number}.bias"] = jnp.zeros(width)
        before = width
    params["head.kernel"] = init(next(keys), (before, config.data.num_classes))
    params["head.bias"] = jnp.zeros(config.data.num_classes)
    return params


def _widths(longer: int) -> tuple[int, ...]:
    """Features of each convolution. The last of them see the whole image, whatever its size."""
    side, num_stems = longer // ceil_div(longer, MAX_SIDE), 0
    while side > STEM_SIDE:
        side, num_stems = ceil_div(side, 2), num_stems + 1
    return (STEM_WIDTH,) * num_stems + WIDTHS


def _forward(
    params: Params, images: UInt8[Array, "b h w c"]
) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
    x = _shrink(from_uint8(images))
    num_layers = sum(name.startswith("conv") for name in params) // 2
    for number in range(num_layers):
        strides = (1, 1) if number == num_layers - len(WIDTHS) else (2, 2)
        x = jax.lax.conv_general_dilated(
            x,
            params[f"conv{number}.kernel"],
            strides,
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[f"conv{number}.bias"])
    pool = x.mean(axis=(1, 2))
    return pool, pool @ params["head.kernel"] + params["head.bias"]


def _shrink(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Average over squares until a side is at most `MAX_SIDE`; the far edges lose their rest."""
    factor = ceil_div(max(x.shape[1:3]), MAX_SIDE)
    height, width = (side // factor for side in x.shape[1:3])
    x = x[:, : height * factor, : width * factor]
    return x.reshape(len(x), height, factor, width, factor, -1).mean(axis=(2, 4))


def _loss(params: Params, images: Array, labels: Array) -> Array:
    _, logits = _forward(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def _accuracy(params: Params, source: SourceImages) -> float:
    compute, num_right = jax.jit(features), 0
    for rows in batches_of(len(source), BATCH_SIZE):
        images, labels = source.examples(rows)
        num_right += int((np.asarray(compute(params, images)["classes"]) == labels).sum())
    return num_right / len(source)
