"""LSUN scenes from the official LMDB files.

TFDS's own builder needs tensorflow-io, which does not exist for recent TensorFlow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import tensorflow_datasets as tfds

from diffussm_jax.data.prepared import LocalBuilder
from diffussm_jax.errors import UserError

_DESCRIPTION = """
Photographs of ten scene categories in the official splits, as the WebP files of the official LMDB.
"""

_CITATION = """
@article{yu2015lsun,
  title={LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans
         in the Loop},
  author={Yu, Fisher and Seff, Ari and Zhang, Yinda and Song, Shuran and Funkhouser, Thomas
          and Xiao, Jianxiong},
  journal={arXiv:1506.03365},
  year={2015}
}
"""

CATEGORIES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)
UNZIP = "unzip it again"
OFFICIAL_SPLITS = {"train": "train", "validation": "val"}

Examples = Iterator[tuple[int, dict[str, Any]]]


class Builder(LocalBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of `lsun/<category>`. It is not registered, because TFDS has one of this name."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in CATEGORIES]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
            ),
            disable_shuffling=True,  # training shuffles; shuffling here would copy every file twice
        )

    def lmdb_folder(self, split: str) -> Path:
        """The folder in which the unzipped official files of a split are expected."""
        manual = Path(self.data_dir).parents[2] / "downloads" / "manual"
        return manual / f"{self.builder_config.name}_{OFFICIAL_SPLITS[split]}_lmdb"

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        for split in OFFICIAL_SPLITS:
            folder = self.lmdb_folder(split)
            if not (folder / "data.mdb").is_file():
                raise UserError(
                    f"data set lsun/{self.builder_config.name}: {folder}/data.mdb is missing: "
                    f"download http://dl.yf.io/lsun/scenes/{folder.name}.zip and unzip it in "
                    f"{folder.parent}"
                )
        return {split: self._generate_examples(split) for split in OFFICIAL_SPLITS}

    def _generate_examples(self, split: str) -> Examples:
        folder = self.lmdb_folder(split)
        try:
            with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as data:
                _require_complete(data, folder / "data.mdb")
                with data.begin() as transaction:
                    for index, (key, value) in enumerate(transaction.cursor()):
                        yield index, {"image": bytes(value), "file_name": key}
        except lmdb.Error as error:
            raise UserError(f"{folder}/data.mdb cannot be read: {error}; {UNZIP}") from error


def _require_complete(data: lmdb.Environment, path: Path) -> None:
    """Compare a file's size with its header, because reading beyond its end is a bus error."""
    num_bytes = (data.info()["last_pgno"] + 1) * data.stat()["psize"]
    if path.stat().st_size < num_bytes:
        raise UserError(
            f"{path} is not complete: it has {path.stat().st_size} of {num_bytes} bytes; {UNZIP}"
        )


def open_builder(category: str, **options: Any) -> Builder:
    """Make the builder of one category, with the options of any TFDS builder.

    Raises:
        UserError: LSUN has no such category.
    """
    if category not in CATEGORIES:
        raise UserError(
            f"config.data.name: LSUN has no category {category!r}; it has {', '.join(CATEGORIES)}"
        )
    return Builder(config=category, **options)
