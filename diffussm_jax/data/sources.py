"""Data sets as random-access sources of examples: images through TFDS, or cached latents."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import quote

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from diffussm_jax.config import Config, DataConfig
from diffussm_jax.config.paths import is_parquet
from diffussm_jax.data import transforms
from diffussm_jax.data.buckets import Sizes, assign, read_sizes
from diffussm_jax.data.builders import make_builder, prepare
from diffussm_jax.data.datasets.image_folder import image_folder_dataset_builder
from diffussm_jax.data.faults import BadRecordError
from diffussm_jax.data.fingerprint import Fingerprint, of_records
from diffussm_jax.data.names import portable_name
from diffussm_jax.data.parquet import ParquetSplit
from diffussm_jax.data.parquet_files import no_split
from diffussm_jax.data.prepared import open_records, require_complete, require_description
from diffussm_jax.data.remote_records import parallel_reads_of
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.files.paths import as_path

Example = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """Random access to examples.

    Attributes:
        facts: what the work directory keeps about it: its origin, the `fingerprint` of its images,
            and `class_names`, which are None without labels.
    """

    facts: dict[str, Any]

    @property
    def parallel_reads(self) -> int:
        """How many examples are best read at a time: many while each read waits for a bucket."""
        ...

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

    Args:
        indices: the records that are read; None is all.
    """

    def __init__(
        self,
        records: Sequence[Any],
        config: DataConfig,
        *,
        facts: dict[str, Any],
        indices: Int[np.ndarray, " n"] | None = None,
    ):
        self.facts = facts
        self._records, self._config = records, config
        self._indices = np.arange(len(records)) if indices is None else indices

    @property
    def parallel_reads(self) -> int:
        return parallel_reads_of(getattr(self._records, "data_source", self._records))

    def __len__(self) -> int:
        return len(self._indices)

    def example(self, index: int, *, mirrored: bool = False) -> Example:
        record: dict[str, Any] = {}
        index = int(self._indices[index])
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
        except CommandEnd:
            raise
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


class Buckets:
    """Sources of one shape each, one after the other, as one source.

    Attributes:
        runs: the indices of the examples of each.
    """

    def __init__(self, sources: Sequence[Source]):
        ends = np.cumsum([len(x) for x in sources]).tolist()
        self.sources, self.facts = sources, sources[0].facts
        self.runs = [range(end - len(x), end) for x, end in zip(sources, ends)]

    @property
    def parallel_reads(self) -> int:
        return max(x.parallel_reads for x in self.sources)

    def __len__(self) -> int:
        return self.runs[-1].stop

    def example(self, index: int, *, mirrored: bool = False) -> Example:
        source, run = next(x for x in zip(self.sources, self.runs) if index in x[1])
        return source.example(run.index(index), mirrored=mirrored)


class Images(NamedTuple):
    """The images of a split, before they are decoded.

    Attributes:
        records: each has `image`, the bytes of a file, and may have `label` and `file_name`.
        name: of the data set, the same on every machine.
        kept: a folder, which need not exist, for what is derived from them.
        facts: what data.json says of them besides.
    """

    records: Sequence[Any]
    name: str
    class_names: list[str] | None
    fingerprint: Fingerprint
    kept: Path
    facts: dict[str, Any]


def open_images(config: Config, split: str) -> ImageSource | Buckets:
    """Open the images of a data set's split, also where the model trains on latents.

    Reading a prepared data set needs no TensorFlow.

    Raises:
        UserError: the data set or split does not exist, is not prepared, or does not fit the
            config.
    """
    data = config.data
    images = (_open_parquet if is_parquet(data.name) else _open_prepared)(data, split)
    check_num_classes(data, images.class_names)
    records, num_images = images.records, len(images.records)
    if data.in_memory and data.space == "pixels":
        logger.info("reading %d records of %s into memory", num_images, images.name)
        records = list(records)
    facts = {
        "source": f"{images.name}, {num_images} images",
        "class_names": images.class_names,
        "fingerprint": dataclasses.asdict(images.fingerprint),
    } | images.facts
    if data.buckets is None:
        return ImageSource(records, data, facts=facts)
    kept = images.kept / f"sizes-{quote(split, safe='')}.npy"
    sizes = read_sizes(records, kept, field="config.data.data_dir")
    return Buckets(list(_buckets(records, sizes, data, facts)))


def _open_prepared(config: DataConfig, split: str) -> Images:
    builder = make_builder(config)
    prepare(config, builder)
    require_description(builder)
    try:
        num_images = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise no_split(config.name, split, builder.info.splits) from error
    if not num_images:
        raise UserError(f"split {split!r} of data set {config.name!r} has no images")
    require_complete(builder, split)
    records = open_records(builder, split, config)
    if isinstance(builder, image_folder_dataset_builder.Builder):
        fingerprint, name = builder.fingerprint(), portable_name(config.name)
    else:
        name = builder.info.full_name
        fingerprint = of_records(name, records)
    features = builder.info.features
    names = list(features["label"].names) if "label" in features else None
    return Images(records, name, names, fingerprint, as_path(builder.data_dir), {})


def _open_parquet(config: DataConfig, split: str) -> Images:
    opened = ParquetSplit(config, split)
    name, fingerprint = portable_name(config.name), opened.fingerprint()
    root = as_path(config.data_dir or tfds.core.constants.DATA_DIR).expanduser()
    kept = root / "parquet" / fingerprint.sha256[:16]
    return Images(
        opened.records(), name, opened.class_names(), fingerprint, kept, opened.files.facts
    )


def _buckets(
    records: Sequence[Any], sizes: Sizes, config: DataConfig, facts: dict[str, Any]
) -> Iterator[ImageSource]:
    shapes = config.bucket_sides
    for sides, indices in zip(shapes, assign(sizes, shapes)):
        if not len(indices):
            height, width = sides
            raise UserError(
                f"config.data.buckets: no image of {config.name!r} is nearest to {height}x{width}: "
                "leave that shape out"
            )
        logger.info("%d images are cropped to %d x %d", len(indices), *sides)
        bucket = dataclasses.replace(config, image_size=sides)
        yield ImageSource(records, bucket, facts=facts, indices=indices)


def check_num_classes(config: DataConfig, class_names: Sequence[str] | None) -> None:
    """Raise UserError unless the config has as many classes as the data set, or none."""
    num_classes = len(class_names or ())
    if config.num_classes not in (0, num_classes):
        raise UserError(
            f"data set {config.name!r} has {num_classes} classes, but config.data.num_classes = "
            f"{config.num_classes}: set --config.data.num_classes={num_classes}"
            + (", or 0 to train without labels" if num_classes else "")
        )
