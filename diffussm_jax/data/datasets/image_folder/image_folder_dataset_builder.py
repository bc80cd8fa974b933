"""Any folder of images as a TFDS data set: its sub-folders are the classes."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from diffussm_jax.config.parsing import read_as
from diffussm_jax.data.fingerprint import (
    Checksums,
    Fingerprint,
    describe_changes,
    key_of_folder,
    of_folder,
)
from diffussm_jax.data.image_files import ImageFiles, find_images, read_files, readable, sub_folders
from diffussm_jax.data.prepared import LocalBuilder
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.files.paths import as_path

Examples = Iterator[tuple[int, dict[str, Any]]]

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"  # beside the records
FIELD = "config.data.name"


class Builder(LocalBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of a folder's data set.

    Files go into the records unchanged and are decoded when they are read. A folder whose files
    change is another data set, and is prepared again. The checksum of each file is kept beside the
    records.

    Raises:
        UserError: the folder has no images, a class has none, or images lie beside the classes.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, folder: Path, *, allow_empty_classes: bool = False, **options: Any):
        self._folder = folder
        found, self._classes = _list_images(folder, allow_empty_classes)
        self._files = found.paths
        # Files and folders of the prepared data set begin with the name.
        label = re.sub(r"\W+", "_", folder.resolve().name)
        self.name = f"folder_{label}_{key_of_folder(folder, found, self._classes)}"
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            "image": tfds.features.Image(),
            "file_name": tfds.features.Text(),
        }
        if self._classes:
            features["label"] = tfds.features.ClassLabel(names=self._classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description="A folder of images.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # training shuffles
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Examples:
        checksums = {}
        for index, (file, data) in enumerate(self._contents()):
            path = file.relative_to(self._folder)
            checksums[path.as_posix()] = hashlib.sha256(data).hexdigest()
            example: dict[str, Any] = {"image": data, "file_name": os.fsencode(path)}
            if self._classes:
                example["label"] = _class_of(path)
            yield index, example
        write_json(as_path(self.data_dir) / CHECKSUMS_FILE, checksums)

    def _contents(self) -> Iterator[tuple[Path, bytes]]:
        return zip(self._files, read_files(self._files, field=FIELD), strict=True)

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the folder's images; they are read unless they are prepared."""
        return of_folder(self.info.full_name, self._checksums())

    def find_changes(self, before: Fingerprint) -> str | None:
        """Say how the folder's images differ from those of a fingerprint; None if they do not.

        Files are read only where their names, sizes and times leave it open.
        """
        if self.info.full_name == before.data_set:
            return None
        known = _read_checksums(as_path(self.data_dir_root) / before.data_set)
        names = dict.fromkeys((x.relative_to(self._folder).as_posix() for x in self._files), "")
        if known is not None and known.keys() != names.keys():
            return describe_changes(dict.fromkeys(known, ""), names)
        if len(names) != before.num_images:
            return f"{len(names)} now and {before.num_images} then"
        now = self._checksums()
        if of_folder(self.info.full_name, now).has_images_of(before):
            return None
        return describe_changes(known, now) if known else f"{len(names)} as then, but not the same"

    def _checksums(self) -> Checksums:
        kept = _read_checksums(as_path(self.data_dir))
        if kept is not None:
            return kept
        logger.info("reading the %d images of %s to compare them", len(self._files), self._folder)
        return {
            file.relative_to(self._folder).as_posix(): hashlib.sha256(data).hexdigest()
            for file, data in self._contents()
        }


def _read_checksums(prepared: Path) -> Checksums | None:
    """The checksums beside prepared records; None where there are none."""
    try:
        return read_as(prepared / CHECKSUMS_FILE, dict)
    except (OSError, UserError):
        return None


def _list_images(folder: Path, allow_empty_classes: bool) -> tuple[ImageFiles, list[str]]:
    """The images in the order of their names, and the classes, of which there may be none."""
    found = find_images(folder, field=FIELD)
    files = found.paths
    beside = [file for file in files if file.parent == folder]
    classes = [readable(child.name) for child in sub_folders(folder)]
    if beside and classes:
        raise UserError(
            f"{FIELD}: {folder} has images ({beside[0].name}) beside sub-folders "
            f"({classes[0]}): put every image into a sub-folder, one for each class, or none"
        )
    with_images = {_class_of(file.relative_to(folder)) for file in files}
    for name in classes:
        if name not in with_images and not allow_empty_classes:
            raise UserError(
                f"{FIELD}: class {name!r} of {folder} has no images: add some, remove the "
                "sub-folder, or keep the class without examples with --config.data.on_error=skip"
            )
        if name not in with_images:
            logger.warning("class %r of %s has no images", name, folder)
    return found, classes


def _class_of(file: Path) -> str:
    """The class of an image, by its path in the folder."""
    return readable(file.parts[0])
