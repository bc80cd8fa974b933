"""Images that an export keeps of itself: whoever loads it can see that it draws what it drew.

verify.json          how they were drawn, the SHA-256 of each, and on what
verify.png           the images of a model of pixels, side by side
verify.safetensors   what a model of latents draws; its autoencoder is a model of its own
"""

import dataclasses
import hashlib
import io
import json
import logging
import platform
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from PIL import Image

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import read_tensors
from diffussm_jax.sampling.generator import Drawn
from diffussm_jax.sampling.images import as_png
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.exports import check_files

logger = logging.getLogger(__name__)

FACTS_FILE, STRIP_FILE, LATENTS_FILE = layout.VERIFY_FILES
NUM_IMAGES, MAX_STEPS = 8, 10
_SAMPLERS = {"gaussian": "dpm_solver++", "flow": "euler", "mean_flow": "euler"}
_TENSOR = "latents"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What verify.json holds.

    Attributes:
        sample: how the images were drawn.
        sha256: of the bytes of each.
        drawn_on: the device and the versions.
    """

    sample: SampleConfig
    sha256: list[str]
    drawn_on: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Images drawn anew beside those of an export.

    Attributes:
        num_equal: images that are equal bit by bit.
        largest: the largest difference of a value: in levels of 255, or for latents in their
            standard deviation.
        mean: of all differences.
        unit: what the differences are in.
    """

    num_equal: int
    largest: float
    mean: float
    unit: str

    @property
    def is_equal(self) -> bool:
        """Whether all images are the same bit by bit."""
        return self.num_equal == NUM_IMAGES


def settings(config: Config) -> SampleConfig:
    """How the images of an export are drawn: in few steps, and one at a time.

    No bit of them depends on how many devices there are, or on how many images one takes at once.
    """
    sample, num_classes = config.sample, config.data.num_classes
    classes = tuple(i * num_classes // NUM_IMAGES for i in range(NUM_IMAGES))
    return SampleConfig(
        num=NUM_IMAGES,
        batch_size=NUM_IMAGES,
        microbatch=1,
        sampler=_SAMPLERS[config.diffusion.process],  # type: ignore[arg-type]
        steps=min(sample.steps, MAX_STEPS),
        cfg_scale=1.0 if sample.autoguidance is not None else sample.cfg_scale,
        labels="list" if num_classes else "balanced",
        classes=classes if num_classes else None,
    )


def num_calls(config: Config) -> int:
    """How many times the model is called with one image."""
    options = settings(config)
    return NUM_IMAGES * options.steps * (1 if options.cfg_scale == 1 else 2)


def draw_evidence(model: TrainedModel) -> tuple[dict[str, bytes], Drawn]:
    """The files by name, and what they show; a model of latents must draw these."""
    options = settings(model.config)
    drawn, _ = model.generator.draw(model.params, options)
    evidence = Evidence(options, _sha256(drawn), _here())
    text = json.dumps(dataclasses.asdict(evidence), indent=1) + "\n"
    if model.config.data.space == "pixels":
        name, content = STRIP_FILE, as_png(np.concatenate(drawn, axis=1))
    else:
        name, content = LATENTS_FILE, safetensors.numpy.save({_TENSOR: drawn})
    return {FACTS_FILE: text.encode(), name: content}, drawn


def read_evidence(folder: Path) -> Evidence:
    """Read how the images of an export were drawn.

    Raises:
        UserError: it has none, or the file is damaged.
    """
    try:
        evidence = read_as(folder / FACTS_FILE, Evidence, mend="export again")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} has no {FACTS_FILE}, with the images that it draws: it is no export, an "
            "early one, or one made with config.export.verify=never; export again"
        ) from error
    check_files(folder, [name for name in layout.VERIFY_FILES if (folder / name).exists()])
    if not len(evidence.sha256) == evidence.sample.num == NUM_IMAGES:
        raise UserError(f"{folder / FACTS_FILE} is damaged: it must be of {NUM_IMAGES} images")
    return evidence


def compare(folder: Path, model: TrainedModel, evidence: Evidence) -> Comparison:
    """Draw the images of an export anew, and compare them with those that it keeps.

    Args:
        evidence: what `read_evidence` gives.

    Raises:
        UserError: these are missing or damaged.
    """
    drawn, _ = model.generator.draw(model.params, evidence.sample)
    kept = _read_images(folder, model.config, drawn.shape)
    num_equal = sum(a == b for a, b in zip(_sha256(drawn), evidence.sha256, strict=True))
    unit, scale = "levels", 1.0
    if model.config.data.space == "latents":
        unit, scale = "standard deviations", float(np.std(kept.astype(np.float64)))
    difference = np.abs(drawn.astype(np.float64) - kept.astype(np.float64)) / scale
    return Comparison(num_equal, float(difference.max()), float(difference.mean()), unit)


def _read_images(folder: Path, config: Config, shape: tuple[int, ...]) -> np.ndarray:
    if config.data.space == "latents":
        kept = read_tensors(folder / LATENTS_FILE).get(_TENSOR, np.zeros(0))
    else:
        try:
            strip = np.asarray(Image.open(io.BytesIO((folder / STRIP_FILE).read_bytes())))
            strip = strip.reshape(*strip.shape[:2], -1)
            kept = np.stack(np.split(strip, NUM_IMAGES, axis=1))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / STRIP_FILE} cannot be read: {error}") from error
    if kept.shape != shape:
        raise UserError(
            f"{folder} keeps images of shape {list(kept.shape)} to verify it by, and draws "
            f"{list(shape)}: export again"
        )
    return kept


def _sha256(images: np.ndarray) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def _here() -> str:
    kind = jax.local_devices()[0].device_kind
    return f"{kind} ({platform.machine()}), jax {jax.__version__}"
