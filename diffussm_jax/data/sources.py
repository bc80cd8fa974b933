"""Data sets as random-access sources of records, through TFDS."""

import logging
from collections.abc import Sequence

import tensorflow_datasets as tfds

from diffussm_jax.config import Config
from diffussm_jax.data.datasets.digits import digits_dataset_builder
from diffussm_jax.errors import UserError

Source = Sequence[dict]

logger = logging.getLogger(__name__)

# Builders inside the package, prepared on first use: they download nothing.
PACKAGED = {"digits": digits_dataset_builder.Builder}


def open_source(config: Config, split: str) -> Source:
    """A source of `{"image": uint8 [h, w, c], "label": int}` records; reading needs no TensorFlow.

    Raises:
        UserError: the data set or split does not exist, is not prepared, or does not fit the config.
    """
    if config.data.space == "latents":
        raise UserError(_missing_latents(config))
    builder = _builder(config)
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"data set {config.data.name!r} has no split {split!r}; it has {known}"
        )
    _check_image_shape(config, builder)
    return builder.as_data_source(split=split)


def _builder(config: Config) -> tfds.core.DatasetBuilder:
    name, data_dir = config.data.name, config.data.data_dir
    if name in PACKAGED:
        builder = PACKAGED[name](data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            logger.info("preparing data set %s in %s (once)", name, builder.data_dir)
            tfds.disable_progress_bar()
            builder.download_and_prepare()
        return builder
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f"config.data.name: TFDS has no data set {name!r}") from error
    is_array_record = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    if not builder.is_prepared() or not is_array_record:
        raise UserError(
            f"data set {name!r} is not prepared as array_record under {builder.data_dir}: run "
            f"`tfds build {name} --file_format=array_record"
            + (f" --data_dir={data_dir}`" if data_dir else "`")
        )
    return builder


def _check_image_shape(config: Config, builder: tfds.core.DatasetBuilder) -> None:
    side, channels = config.data.image_size, config.data.channels
    shape = builder.info.features["image"].shape
    if shape != (side, side, channels):
        raise UserError(
            f"data set {config.data.name!r} holds images of shape {shape}, but config.data.image_size "
            f"and config.data.channels say {(side, side, channels)}"
        )


def _missing_latents(config: Config) -> str:
    side = config.data.image_size
    return (
        f"{config.data.name!r} at {side} x {side} trains on cached latents of {config.autoencoder.name}, "
        "which this version cannot make yet (--mode=encode is planned); "
        "run configs/digits.py, or configs/cifar10.py after `tfds build cifar10 --file_format=array_record`"
    )
