"""Whether a run that goes on has the images that it began with."""

import itertools
import logging
from pathlib import Path
from typing import Any

from diffussm_jax.config import Config, parsing
from diffussm_jax.config.paths import FOLDER
from diffussm_jax.data.at_hand import require_same_images
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.errors import UserError
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.data_facts import (
    DATA_FILE,
    read_all_facts,
    read_data_facts,
    write_data_facts,
)

logger = logging.getLogger(__name__)

# Facts that decide what an example is and which one comes next, besides its image and label.
_MUST_BE_EQUAL = {"num_images", "crop", "autoencoder.sha256"}
_COMPARED_ABOVE = {"fingerprint", "class_names"}


def begin_data_facts(workdir: Path, facts: dict[str, Any]) -> None:
    """Write the facts of a run that begins; those of one that goes on stay as they were."""
    is_kept = layout.holds_run(workdir) and read_data_facts(workdir).fingerprint is not None
    if not is_kept:
        write_data_facts(workdir, facts)


def require_same_folder(workdir: Path, config: Config) -> None:
    """Raise UserError if a run's folder of images has changed, before the new one is prepared."""
    before = read_data_facts(workdir).fingerprint
    if before is None or config.data.space != "pixels" or not config.data.name.startswith(FOLDER):
        return
    made = f"the run in --workdir={workdir} began with"
    require_same_images(config, config.data.split, before, made=made, mend=_mend(workdir))


def require_same_data(workdir: Path, config: Config, facts: dict[str, Any]) -> None:
    """Compare the data at hand with those that a run began with; log what differs and may.

    Raises:
        UserError: a label would mean something else, or the run would not go on in the data where
            it stopped.
    """
    checked, before = read_data_facts(workdir), read_all_facts(workdir)
    if checked.fingerprint is None:
        logger.info(
            "%s does not say which images the run began with: those at hand are taken for them",
            workdir / DATA_FILE,
        )
    else:
        now = parsing.from_object(Fingerprint, facts["fingerprint"])
        difference = now.difference_from(checked.fingerprint)
        if difference is not None:
            raise _refusal(workdir, difference)
    if config.data.num_classes and checked.class_names is not None:
        _require_same_classes(workdir, checked.class_names, facts["class_names"] or [])
    for name in sorted((before.keys() & facts.keys()) - _COMPARED_ABOVE):
        if before[name] != facts[name]:
            change = f"{name} was {before[name]!r} and is {facts[name]!r}"
            if name in _MUST_BE_EQUAL:
                raise _refusal(workdir, change)
            logger.info("the data have changed since the run began: %s", change)
    saved = layout.read_config(workdir)
    for field in ("data.name", "data.eval_split"):
        was, value = (parsing.get_field(c, field) for c in (saved, config))
        if was != value:
            logger.info("%s was %r at the last start and is %r", field, was, value)


def mend_of_run(workdir: Path, fingerprint: Fingerprint) -> str | None:
    """What to do where images are not those of a run's latents; None if the latents are others.

    The images may not be encoded again for such a run, which would then have other data.
    """
    before = read_data_facts(workdir).fingerprint
    return _mend(workdir) if before is not None and before.has_images_of(fingerprint) else None


def _require_same_classes(workdir: Path, before: list[str], now: list[str]) -> None:
    for label, (a, b) in enumerate(itertools.zip_longest(before, now)):
        if a != b:
            raise _refusal(workdir, f"class {label} was {a!r} and is {b!r}")


def _refusal(workdir: Path, difference: str) -> UserError:
    return UserError(
        f"--workdir={workdir} holds a run that began with other data: {difference}; "
        f"{_mend(workdir)}"
    )


def _mend(workdir: Path) -> str:
    return (
        "restore them to go on with this run, or begin from its weights in a new --workdir with "
        f"--config.training.init_from={workdir}"
    )
