"""The fields of the images that a model learns from, and of the autoencoder of latents."""

import dataclasses
from typing import Literal

from diffussm_jax.config.paths import FilePath
from diffussm_jax.config.sizes import Size, pair, parse_size, shortest


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, what is taken from it, and how it is read."""

    # A TFDS data set, `lsun/<category>`, `folder:<path>`, whose sub-folders are the classes,
    # `parquet:<path>`, or `hf:USER/NAME[@REVISION][:CONFIG]` of the Hugging Face hub.
    name: FilePath = "digits"
    space: Literal["pixels", "latents"] = "pixels"  # in which the model denoises
    # Of an image in pixels, its centre crop and the padding around it: height and width, as 8,16,
    # or the side of a square.
    image_size: Size = 8
    # Shapes of about equal area, as 256x256,208x320,320x208, for a folder of images of any shape:
    # each is cropped to that nearest its own. image_size is one of them, and what is drawn.
    buckets: tuple[str, ...] | None = None
    pad: int = 0  # black pixels along each edge, so that 28 x 28 images become 32 x 32 unscaled
    channels: int = 1  # of an image; those of latents are the autoencoder's
    num_classes: int = 10  # 0 trains without labels
    split: str = "train"  # or a part of one, as train[1%:]
    image_column: str | None = None  # of parquet; None is the only one that can be
    label_column: str | None = None
    # Of row groups of parquet that each process keeps in memory, in GiB.
    parquet_cache_gb: float = 1.0
    eval_split: str | None = "test"  # held out for the evaluation loss; None evaluates nothing
    # Nothing may be written among the images: this folder, latents_dir and the work directory lie
    # outside a folder that `name` has.
    data_dir: FilePath | None = None  # folder of prepared data sets; None is TFDS's own default
    latents_dir: FilePath | None = None  # folder of cached latents; None is `latents` in data_dir
    shard_size: int = 1000  # images per file of cached latents
    # Of files that data_dir and latents_dir have at gs://, how much each host keeps on its disk, in
    # GB; what is beyond it is read from the bucket record by record. 0 keeps none.
    cache_gb: float = 50.0
    cache_dir: FilePath | None = None  # where; None is diffussm_jax/files in the user's cache
    flip: bool = True  # whether half of the images are mirrored, at random
    max_pixels: int = 180_000_000  # of a picture; a larger one is a bad record, and takes gigabytes
    on_error: Literal["fail", "skip"] = "fail"  # at a bad record; skip allows 1 % of them
    workers: int | None = None  # threads that read and decode; None is one per core, at most 16
    in_memory: bool = False  # whether each host keeps all records in memory

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", shortest(self.image_size))

    @property
    def sides(self) -> tuple[int, int]:
        """The height and width of an image in pixels."""
        return pair(self.image_size)

    @property
    def bucket_sides(self) -> list[tuple[int, int]]:
        """The height and width of each bucket's images in pixels."""
        return [parse_size(text) for text in self.buckets or ()]


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder of a model in latent space; its files must have the same values."""

    # A folder with config.json and safetensors in the layout of diffusers, or an id on the hub.
    name: FilePath = "stabilityai/sd-vae-ft-ema"
    factor: int = 8  # side of a latent position in pixels
    channels: int = 4  # of latents
    scale: float = 0.18215  # latents are multiplied by it, to have variance 1
    dtype: Literal["bfloat16", "float32"] = "float32"  # of its activations
    batch_size: int = 16  # images per call and device
