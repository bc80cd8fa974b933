"""Draws images with given parameters: the sampler, its guidance and the autoencoder as one program on a mesh."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.feed import split_rows, to_host
from diffussm_jax.sampling.images import ImageArray, LabelArray
from diffussm_jax.sampling.inputs import image_labels
from diffussm_jax.sampling.program import images_per_call, sampling_program
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.weights import Weights, load_weights

Decoder = Callable[[jax.Array], jax.Array]


def make_decoder(config: Config, workdir: Path, mesh: Mesh) -> Decoder:
    """The function from what the model denoises to images: the autoencoder's, or none for pixels.

    Raises:
        UserError: the autoencoder is missing, or not the one of the run's latents.
    """
    if config.data.space == "pixels":
        return lambda pixels: pixels
    autoencoder = Autoencoder(config, mesh)
    encoded_by = layout.read_data_facts(workdir).autoencoder_sha256
    if encoded_by not in (None, autoencoder.sha256):
        raise UserError(
            f"config.autoencoder.name: the weights of {config.autoencoder.name!r} are not those that the latents "
            f"of {workdir} were encoded with (sha256 {encoded_by[:12]}, now {autoencoder.sha256[:12]})"
        )
    return autoencoder.decode


class Generator:
    """Draws images with given parameters; compiles once for each sampler and its options.

    Image i is a function of (seed, i), its label and the options alone, not of the batch size or
    the devices.
    """

    def __init__(self, config: Config, graphdef: nnx.GraphDef, mesh: Mesh, decode: Decoder):
        self._config, self._graphdef, self._mesh = config, graphdef, mesh
        self._decode = decode

    def draw(self, params: dict, options: SampleConfig) -> tuple[ImageArray, LabelArray | None]:
        """The images that a sample section asks for, and their labels (None without classes)."""
        images = self.draw_range(params, options, range(options.num))
        num_classes = self._config.data.num_classes
        return images, image_labels(options, num_classes, np.arange(options.num))

    def draw_range(self, params: dict, options: SampleConfig, indices: range) -> ImageArray:
        """The images at consecutive indices."""
        size = images_per_call(options, self._mesh)
        run, guide = self._compile(_static_options(options)), self.guide(options)
        num_classes = self._config.data.num_classes
        images = []
        starts = range(indices.start, indices.stop, size)
        for start in tqdm(starts, desc="sampling", leave=False, disable=_is_quiet(starts)):
            # A last batch that is not full is drawn in full, so that it needs no second compilation.
            batch = np.arange(start, start + size, dtype=np.int32)
            asked = image_labels(options, num_classes, batch)
            places = (split_rows(self._mesh, x) for x in (batch, asked))
            x_0 = run(params, guide and guide.params, options.seed, *places)
            images.append(to_uint8(to_host(self._decode(x_0))))
        return np.concatenate(images)[: len(indices)]

    def guide(self, options: SampleConfig) -> Weights | None:
        """The model that autoguidance moves away from, on this generator's mesh."""
        if options.autoguidance is None:
            return None
        return self._load_guide(options.autoguidance)

    @functools.cache  # noqa: B019  # a generator lives as long as its process
    def _load_guide(self, folder: str) -> Weights:
        guide = load_weights(Path(os.path.expanduser(folder)), mesh=self._mesh)
        _require_same_process(self._config, guide.config, folder)
        return guide

    @functools.cache  # noqa: B019
    def _compile(self, options: SampleConfig) -> Callable:
        guide = self.guide(options)
        config = None if guide is None else guide.config
        return sampling_program(self._config, self._graphdef, self._mesh, options, config)


def _static_options(options: SampleConfig) -> SampleConfig:
    """Without what a program takes as arguments, so that one serves all of those."""
    default, arguments = SampleConfig(), ("num", "batch_size", "seed", "labels", "classes")
    kept = {name: getattr(default, name) for name in arguments}
    return dataclasses.replace(options, **kept)


def _require_same_process(config: Config, guide: Config, folder: str) -> None:
    """Raise UserError unless a guide predicts what the model does."""
    ours, theirs = (
        {
            "grid": c.grid,
            "data.num_classes": c.data.num_classes,
            "diffusion.num_steps": c.diffusion.num_steps,
            "diffusion.schedule": c.diffusion.schedule,
            "diffusion.prediction": c.diffusion.prediction,
        }
        for c in (config, guide)
    )
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"config.sample.autoguidance: {folder} holds a run with {name} = {theirs[name]!r}, and the model has "
                f"{value!r}: use a worse version of the same model"
            )


def _is_quiet(batches: Sequence) -> bool:
    return len(batches) == 1 or not sys.stderr.isatty()
