"""Data sets as random-access sources of examples: images through TFDS, or cached latents."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds

from diffussm_jax.config import Config, DataConfig
from diffussm_jax.config.paths import FOLDER
from diffussm_jax.data import transforms
from diffussm_jax.data.datasets.digits import digits_dataset_builder
from diffussm_jax.data.datasets.image_folder import image_folder_dataset_builder
from diffussm_jax.data.datasets.lsun import lsun_dataset_builder
from diffussm_jax.data.faults import BadRecordError
from diffussm_jax.data.fingerprint import of_records
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.placement import require_outside
from diffussm_jax.data.prepared import damaged, require_complete, require_description
from diffussm_jax.errors import UserError
from diffussm_jax.files import one_writer, writing_to

Example = dict[str, np.ndarray]

logger = logging.getLogger(__name__)

ARRAY_RECORD = "array_record"


@runtime_checkable
class Source(Protocol):
    """Random access to examples.

    Attributes:
        facts: what the work directory keeps about it: its origin, the `fingerprint` of its images,
            and `class_names`, which are None without labels.
    """

    facts: dict[str, Any]

    def __len__(self) -> int: ...

    def example(self, index: int, *, mirrored: bool) -> Example:
        """Read the arrays of one example, by name.

        Raises:
            BadRecordError: it cannot be used.
        """
        ...


class ImageSource:
    """Images of a prepared TFDS data set, cropped to one size.

    An example has `image`, uint8 [h, w, c], and `label`, int32: the class, also where the model
    takes no labels, or 0 where the data set has none.
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], config: DataConfig, *, facts: dict[str, Any]
    ):
        self.facts = facts
        self._records, self._config = records, config

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, *, mirrored: bool = False) -> Example:
        record: dict[str, Any] = {}
        try:
            record = self._records[index]
            image = transforms.decode_image(
                record["image"], channels=self._config.channels, max_pixels=self._config.max_pixels
            )
            pad = self._config.pad
            height, width = self._config.sides
            pixels = transforms.centre_crop(image, (height - 2 * pad, width - 2 * pad))
            if pad:
                pixels = transforms.pad_with_black(pixels, pad)
        # Pillow's decoders and the record reader raise anything at all for damaged bytes.
        except Exception as error:
            raise BadRecordError(f"{self._name(index, record)}: {error}") from error
        label = int(record.get("label", 0))
        if self._config.num_classes and not 0 <= label < self._config.num_classes:
            raise BadRecordError(
                f"{self._name(index, record)}: label {label} is not below "
                f"data.num_classes = {self._config.num_classes}"
            )
        return {
            "image": pixels[:, ::-1] if mirrored else pixels,
            "label": np.asarray(label, np.int32),
        }

    def _name(self, index: int, record: dict[str, Any]) -> str:
        file = record.get("file_name", b"")
        where = f"record {index} of {self._config.name}"
        return f"{where} ({file.decode(errors='backslashreplace')})" if file else where


def open_images(config: Config, split: str) -> ImageSource:
    """Open the images of a data set's split, also where the model trains on latents.

    Reading a prepared data set needs no TensorFlow.

    Raises:
        UserError: the data set or split does not exist, is not prepared, or does not fit the
            config.
    """
    builder = make_builder(config.data)
    _prepare(config.data, builder)
    require_description(builder)
    try:
        num_images = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"data set {config.data.name!r} has no split {split!r}; it has {known} and their "
            "slices, as train[:99%]"
        ) from error
    if not num_images:
        raise UserError(f"split {split!r} of data set {config.data.name!r} has no images")
    require_complete(builder, split)
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    if config.data.in_memory and config.data.space == "pixels":
        logger.info("reading %d records of %s into memory", num_images, builder.name)
        records = list(records)
    if isinstance(builder, image_folder_dataset_builder.Builder):
        fingerprint, name = builder.fingerprint(), portable_name(config.data.name)
    else:
        name = builder.info.full_name
        fingerprint = of_records(name, records)
    facts = {
        "source": f"{name}, {num_images} images",
        "class_names": _class_names(config.data, builder),
        "fingerprint": dataclasses.asdict(fingerprint),
    }
    return ImageSource(records, config.data, facts=facts)


def make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    """Make the builder of a data set. A folder, LSUN or the digits may not be prepared yet.

    Raises:
        UserError: there is no such data set, or it is TFDS's own and not prepared.
    """
    name, _, category = config.name.partition("/")
    options = {"data_dir": config.data_dir, "file_format": ARRAY_RECORD}
    if config.name.startswith(FOLDER):
        folder = Path(config.name.removeprefix(FOLDER))
        builder = image_folder_dataset_builder.Builder(
            folder, allow_empty_classes=config.on_error == "skip", **options
        )
        require_outside(folder, builder.data_dir, field="config.data.data_dir")  # the default too
        return builder
    if name == "lsun":
        return lsun_dataset_builder.open_builder(category, **options)
    if name == "digits":
        return digits_dataset_builder.Builder(**options)
    return _tfds_builder(config)


def _prepare(config: DataConfig, builder: tfds.core.DatasetBuilder) -> None:
    """Prepare a data set on its first use, if that downloads nothing.

    Of the processes that share a disk one does it, and the others wait.
    """
    folder = Path(builder.data_dir)
    if not builder.is_prepared():
        with writing_to(folder, field="config.data.data_dir"), one_writer(folder):
            if not builder.is_prepared():
                logger.info("preparing %s in %s (once)", config.name, folder)
                tfds.disable_progress_bar()
                with contextlib.redirect_stdout(None):  # it would speak of a download
                    builder.download_and_prepare()
    # Another process may have prepared it after this builder had been made.
    if not builder.info.splits and (folder / "dataset_info.json").is_file():
        builder.info.read_from_directory(folder)


def _tfds_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    name, data_dir = config.name, config.data_dir
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        folder = _prepared_folder(name, data_dir)
        if folder is not None:  # TFDS raises anything at all for a damaged description
            raise damaged(folder, error, is_local=False) from error
        if isinstance(error, tfds.core.registered.DatasetNotFoundError):
            raise UserError(f"config.data.name: TFDS has no data set {name!r}") from error
        if isinstance(error, ValueError):  # a page on how names are written
            raise UserError(
                f"config.data.name: {name!r} is no name of a TFDS data set, folder:<path> or "
                "lsun/<category>"
            ) from error
        raise
    where = f", data_dir={data_dir!r}" if data_dir else ""
    if not builder.is_prepared():
        raise UserError(
            f'data set {name!r} is not prepared under {builder.data_dir}: run python -c "import '
            f"tensorflow_datasets as tfds; tfds.builder({name!r}, "
            f"file_format='{ARRAY_RECORD}'{where}).download_and_prepare()\""
            + _without_download(config)
        )
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        names = ", ".join(sorted(x.value for x in formats))
        folder = Path(builder.data_dir).parents[len(name.split("/")) - 1]
        raise UserError(
            f"data set {name!r} is prepared as {names}, which has no random access: pip install "
            f"apache-beam mlcroissant && tfds convert_format --dataset_dir={folder} "
            f"--out_file_format={ARRAY_RECORD} --out_dir=NEW/{folder.name}, then "
            "--config.data.data_dir=NEW"
        )
    return builder


def _without_download(config: DataConfig) -> str:
    if config.name != "fashion_mnist":
        return ""
    target = config.data_dir or tfds.core.constants.DATA_DIR
    return (
        f"; or, with its four files in FOLDER: python -m diffussm_jax.convert.fashion_mnist FOLDER "
        f"{target}"
    )


def _prepared_folder(name: str, data_dir: str | None) -> Path | None:
    """The folder of a TFDS data set of this name, prepared or begun; None if there is none."""
    word = re.match(r"\w+", name)
    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    return folder / word[0] if word and (folder / word[0]).is_dir() else None


def _class_names(config: DataConfig, builder: tfds.core.DatasetBuilder) -> list[str] | None:
    features = builder.info.features
    names = list(features["label"].names) if "label" in features else None
    check_num_classes(config, names)
    return names


def check_num_classes(config: DataConfig, class_names: Sequence[str] | None) -> None:
    """Raise UserError unless the config has as many classes as the data set, or none."""
    num_classes = len(class_names or ())
    if config.num_classes not in (0, num_classes):
        raise UserError(
            f"data set {config.name!r} has {num_classes} classes, but config.data.num_classes = "
            f"{config.num_classes}: set --config.data.num_classes={num_classes}"
            + (", or 0 to train without labels" if num_classes else "")
        )
