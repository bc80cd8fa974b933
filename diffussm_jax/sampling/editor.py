"""Edit images with given parameters: editing program, guidance and autoencoder on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.config import Config, EditConfig, SampleConfig
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.config.editing_rules import require_editable
from diffussm_jax.data.transforms import from_uint8, to_uint8
from diffussm_jax.parallel.feed import place, to_host
from diffussm_jax.parallel.mesh import num_batch_parts, split_over_batch
from diffussm_jax.sampling.edit_sources import MaskArray, Sources
from diffussm_jax.sampling.editing_program import EditInputs, editing_program
from diffussm_jax.sampling.generator import Generator, decoder_of, static_options
from diffussm_jax.sampling.images import ImageArray
from diffussm_jax.sampling.program import images_per_call

# The options that the program of each kind reads.
_READ = {
    "img2img": ("strength",),
    "inpaint": ("jump_length", "resamplings"),
    "outpaint": ("jump_length", "resamplings"),
    "invert": ("iterations",),
    "interpolate": ("iterations",),
    "vary": ("strength", "iterations"),
}


class Editor:
    """Edits images, compiling once for each kind and its options.

    Result i is a function of its images, their labels, (seed, i) and the options alone, not of the
    batch size or the devices.

    Args:
        generator: has the guides, on the same mesh.
        autoencoder: None for a model of pixels.
    """

    def __init__(
        self, config: Config, mesh: Mesh, generator: Generator, autoencoder: Autoencoder | None
    ):
        self._config, self._mesh = config, mesh
        self._generator, self._autoencoder = generator, autoencoder
        self._programs: dict[tuple[SampleConfig, EditConfig], Callable[..., jax.Array]] = {}

    def edit_range(
        self,
        params: dict,
        sources: Sources,
        options: SampleConfig,
        edit: EditConfig,
        indices: range,
    ) -> ImageArray:
        """The results at consecutive indices: `edit.num` of each image, in turn.

        Those of interpolation are `edit.num` between each image and the next. `options.num` is the
        number of all results.

        Raises:
            ConfigError: the sampler or the model cannot make such an edit.
        """
        require_editable(dataclasses.replace(self._config, sample=options, edit=edit))
        images = sources.images[np.asarray(indices) // edit.num]
        if edit.strength == 0 and edit.kind in ("img2img", "vary"):
            return images
        drawn = self._draw(params, sources, options, edit, indices)
        if sources.masks is None:
            return drawn
        return np.where(sources.masks[np.asarray(indices) // edit.num, ..., None], drawn, images)

    def _draw(
        self,
        params: dict,
        sources: Sources,
        options: SampleConfig,
        edit: EditConfig,
        indices: range,
    ) -> ImageArray:
        size = images_per_call(options, self._mesh)
        run, guide = self._compile(options, edit), self._generator.guide(options)
        results = []
        for start in range(indices.start, indices.stop, size):
            batch = np.arange(start, start + size, dtype=np.int32)
            inputs = self._inputs(sources, options, edit, batch % options.num)
            x0 = run(params, guide and guide.params, options.seed, self._split(batch), inputs)
            images = decoder_of(self._autoencoder)(x0, options.closed)
            results.append(to_uint8(to_host(images)))
        return np.concatenate(results)[: len(indices)]

    def _inputs(
        self,
        sources: Sources,
        options: SampleConfig,
        edit: EditConfig,
        results: Int[np.ndarray, " b"],
    ) -> EditInputs:
        """The rows of a batch; results beyond the last one repeat the first ones."""
        rows, number = np.divmod(results, edit.num)
        weight = ((number + 1) / (edit.num + 1)).astype(np.float32)
        nearest = rows
        inputs: dict[str, Any] = {"x0": self._as_denoised(sources.images[rows])}
        if sources.masks is not None:
            inputs["mask"] = self._split(
                _on_grid(sources.masks[rows], as_drawn(options, self._config))
            )
        if edit.kind == "interpolate":
            inputs["other"] = self._as_denoised(sources.images[rows + 1])
            inputs["weight"] = self._split(weight)
            nearest = rows + (weight > 0.5)  # no label is between two
        if sources.labels is not None:
            target = sources.labels[nearest]
            if edit.target is not None:
                target = np.full_like(target, edit.target)
            inputs |= {"y": self._split(sources.labels[rows]), "target": self._split(target)}
            if edit.kind == "interpolate":
                inputs["other_y"] = self._split(sources.labels[rows + 1])
        return EditInputs(**inputs)

    def _split(self, array: np.ndarray) -> jax.Array:
        return place(array, split_over_batch(self._mesh))

    def _as_denoised(self, images: ImageArray) -> jax.Array:
        if self._autoencoder is None:
            return from_uint8(self._split(images))
        size = self._config.autoencoder.batch_size * num_batch_parts(self._mesh)
        slices = [images[start : start + size] for start in range(0, len(images), size)]
        means = [to_host(self._autoencoder.encode(x)[:, 0, 0]) for x in slices]  # not mirrored
        return self._config.autoencoder.scale * self._split(np.concatenate(means, dtype=np.float32))

    def _compile(self, options: SampleConfig, edit: EditConfig) -> Callable[..., jax.Array]:
        key = static_options(options), _static_edit(edit)
        if key not in self._programs:
            config, graphdef, guide = self._generator.called(options)
            self._programs[key] = editing_program(config, graphdef, self._mesh, *key, guide=guide)
        return self._programs[key]


def _on_grid(masks: MaskArray, config: Config) -> Bool[np.ndarray, "b _ _ 1"]:
    """Masks of what the model denoises: a latent is drawn anew if any of its pixels is."""
    height, width, _ = config.grid
    num, rows, columns = masks.shape
    cells = masks.reshape(num, height, rows // height, width, columns // width)
    return np.any(cells, axis=(2, 4))[..., None]


def _static_edit(edit: EditConfig) -> EditConfig:
    """The options that the program depends on, so that it compiles once."""
    return EditConfig(kind=edit.kind, **{name: getattr(edit, name) for name in _READ[edit.kind]})
