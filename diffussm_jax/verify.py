"""`--mode=verify`: whether an export draws here the images that it keeps of itself."""

import logging
from pathlib import Path

from diffussm_jax.config import Config
from diffussm_jax.errors import OtherImages
from diffussm_jax.sampling.model import load
from diffussm_jax.sampling.verification import Comparison, compare, read_evidence

logger = logging.getLogger(__name__)

# Largest mean and largest single difference, by unit: docs/hub.md has what was measured.
TOLERANCES = {"levels": (1.0, 32.0), "standard deviations": (0.02, 0.5)}


def verify(config: Config, workdir: Path) -> None:
    """Draw the images of an export anew, and say whether they are those that it keeps.

    Raises:
        OtherImages: they differ by more than other devices explain.
        UserError: it is no export, is damaged or keeps no images.
    """
    evidence = read_evidence(workdir)
    model = load(workdir, config=config, latents=config.data.space == "latents")
    found = compare(workdir, model, evidence)
    said = f"{workdir}, step {model.step}"
    if found.is_equal:
        logger.info("%s draws its %d images bit by bit", said, found.num_equal)
        return
    differs = describe(found)
    if is_within(found):
        logger.info(
            "%s draws its images: %s; they were drawn on %s", said, differs, evidence.drawn_on
        )
        return
    raise OtherImages(f"{said} draws other images than it keeps: {differs}")


def is_within(found: Comparison) -> bool:
    """Whether images differ by no more than other devices and implementations make them."""
    mean, largest = TOLERANCES[found.unit]
    return found.mean <= mean and found.largest <= largest


def describe(found: Comparison) -> str:
    """The differences, and how large they may be."""
    mean, largest = TOLERANCES[found.unit]
    return (
        f"{found.num_equal} are equal, and {found.unit} differ by {found.mean:.3g} in the mean "
        f"(at most {mean:g}) and by {found.largest:.3g} at most (at most {largest:g})"
    )
