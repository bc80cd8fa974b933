"""The fields of `--mode=edit`."""

import dataclasses
from typing import Literal

from diffussm_jax.config.paths import FilePath


@dataclasses.dataclass(frozen=True)
class EditConfig:
    """The images to edit and how; `sample` has the sampler and the weights (docs/editing.md)."""

    images: FilePath | None = None  # folder of the images, which `--mode=edit` needs
    # img2img draws each image anew from a noised one, inpaint what its mask covers, outpaint what
    # is around it. invert finds the noise that it is drawn from, and draws it again; vary changes
    # that noise, and interpolate goes from one image's to the next's.
    kind: Literal["img2img", "inpaint", "outpaint", "invert", "interpolate", "vary"] = "img2img"
    num: int = 1  # results of each image; of interpolate, those between each image and the next
    strength: float = 0.6  # of img2img and vary: 0 gives the image back, 1 draws a new one
    # (top, left, height, width) in pixels of the model's images: inpaint draws it anew, instead of
    # reading masks; outpaint puts the image there.
    rectangle: tuple[int, int, int, int] | None = None
    jump_length: int = 10  # steps that inpainting goes several times together
    resamplings: int = 10  # how many times; 1 only replaces what is known after each step
    iterations: int = 3  # calls of a step for each one that is reversed
    # The labels of the images: none, those of the folders that they are in, or the `classes` below
    # in turn.
    labels: Literal["none", "folders", "list"] = "none"
    classes: tuple[int, ...] | None = None
    target: int | None = None  # the class that results are drawn as; None: that of the image
