"""Whether the images at hand are those that a cache of latents or a run was made from."""

import logging

from diffussm_jax.config import Config, DataConfig
from diffussm_jax.config.parsing import from_object
from diffussm_jax.config.paths import FOLDER, is_parquet
from diffussm_jax.data.builders import make_builder
from diffussm_jax.data.datasets.image_folder import image_folder_dataset_builder
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.data.image_files import has_images
from diffussm_jax.data.parquet_files import find_files
from diffussm_jax.data.sources import open_images
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path

logger = logging.getLogger(__name__)


def require_same_images(
    config: Config, split: str, before: Fingerprint, *, made: str, mend: str
) -> None:
    """Raise UserError, with what differs, if the images at hand are not those of a fingerprint.

    Nothing is prepared for it. Where the images are not at hand, the log says what stands for them.

    Args:
        made: what the fingerprint belongs to, with a verb: "the latents of X were encoded from".
        mend: what the user can do.
    """
    if not _are_at_hand(config.data, split):
        logger.info(
            "%s is not at hand, so it is not compared with the %d images of %s that %s",
            config.data.name,
            before.num_images,
            before.data_set,
            made,
        )
        return
    changes = _find_changes(config, split, before)
    if changes is not None:
        raise UserError(
            f"config.data.name: the images of {config.data.name!r} are not those that {made}: "
            f"{changes}; {mend}"
        )


def _are_at_hand(config: DataConfig, split: str) -> bool:
    try:
        if is_parquet(config.name):
            return bool(find_files(config, split, is_offline=True).names)
        if not config.name.startswith(FOLDER):
            return make_builder(config).is_prepared()
        return has_images(as_path(config.name.removeprefix(FOLDER)))
    except (OSError, UserError):  # it cannot be read, or is not prepared
        return False


def _find_changes(config: Config, split: str, before: Fingerprint) -> str | None:
    if config.data.name.startswith(FOLDER):
        builder = make_builder(config.data)
        assert isinstance(builder, image_folder_dataset_builder.Builder)
        return builder.find_changes(before)
    now = from_object(Fingerprint, open_images(config, split).facts["fingerprint"])
    return now.difference_from(before)
