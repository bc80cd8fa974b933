"""Builders of data sets, as TFDS has them: a folder's, LSUN's, the digits', or TFDS's own."""

import contextlib
import dataclasses
import logging
import re
import shutil
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from diffussm_jax.config import DataConfig
from diffussm_jax.config.paths import FOLDER
from diffussm_jax.data.datasets.digits import digits_dataset_builder
from diffussm_jax.data.datasets.image_folder import image_folder_dataset_builder
from diffussm_jax.data.datasets.lsun import lsun_dataset_builder
from diffussm_jax.data.placement import require_outside
from diffussm_jax.data.prepared import damaged
from diffussm_jax.errors import UserError
from diffussm_jax.files import one_writer, replacing, writing_to
from diffussm_jax.files.paths import as_path, is_in_bucket

logger = logging.getLogger(__name__)

ARRAY_RECORD = "array_record"
DESCRIPTION = "dataset_info.json"  # of a prepared data set

_FIELD = "config.data.data_dir"


def make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    """Make the builder of a data set. A folder, LSUN or the digits may not be prepared yet.

    Raises:
        UserError: there is no such data set, or it is TFDS's own and not prepared.
    """
    name, _, category = config.name.partition("/")
    options = {"data_dir": config.data_dir, "file_format": ARRAY_RECORD}
    if config.name.startswith(FOLDER):
        folder = as_path(config.name.removeprefix(FOLDER))
        builder = image_folder_dataset_builder.Builder(
            folder, allow_empty_classes=config.on_error == "skip", **options
        )
        require_outside(folder, builder.data_dir, field=_FIELD)  # the default too
        return builder
    if name == "lsun":
        return lsun_dataset_builder.open_builder(category, **options)
    if name == "digits":
        return digits_dataset_builder.Builder(**options)
    return _tfds_builder(config)


def prepare(config: DataConfig, builder: tfds.core.DatasetBuilder) -> None:
    """Prepare a data set on its first use, if that downloads nothing.

    Of the processes that share a disk one does it, and the others wait.
    """
    folder = as_path(builder.data_dir)
    if is_in_bucket(folder):
        _prepare_in_bucket(config, builder, folder)
    elif not builder.is_prepared():
        with writing_to(folder, field=_FIELD), one_writer(folder):
            if not builder.is_prepared():
                logger.info("preparing %s in %s (once)", config.name, folder)
                tfds.disable_progress_bar()
                with contextlib.redirect_stdout(None):  # it would speak of a download
                    builder.download_and_prepare()
    # Another process may have prepared it after this builder had been made.
    if not builder.info.splits and (folder / DESCRIPTION).is_file():
        builder.info.read_from_directory(folder)


def _prepare_in_bucket(config: DataConfig, builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    """Prepare a data set on this disk, and copy its files: last that without which it is none.

    Each of several processes does it, with the same result.
    """
    if (folder / DESCRIPTION).is_file():
        return
    logger.info("preparing %s in %s (once)", config.name, folder)
    with tempfile.TemporaryDirectory() as temporary, writing_to(folder, field=_FIELD):
        local = make_builder(dataclasses.replace(config, data_dir=temporary))
        prepare(config, local)
        files = sorted(Path(local.data_dir).iterdir(), key=lambda x: x.name == DESCRIPTION)
        for file in files:
            if not file.name.startswith("."):
                with replacing(folder / file.name) as copy:
                    shutil.copyfile(file, copy)


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
        folder = as_path(builder.data_dir).parents[len(name.split("/")) - 1]
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
    folder = as_path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    return folder / word[0] if word and (folder / word[0]).is_dir() else None
