"""A trained model to draw from: load a work directory, ask for classes, get images."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax.sharding import Mesh

from diffussm_jax.autoencoder.weights import find_autoencoder, weights_sha256
from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.config.editing_rules import require_editable
from diffussm_jax.config.paths import expand
from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.parallel.settings import start_jax
from diffussm_jax.sampling.edit_sources import Sources, make_sources, num_results
from diffussm_jax.sampling.editor import Editor
from diffussm_jax.sampling.generator import Drawn, Generator, decoder_of, open_autoencoder
from diffussm_jax.sampling.images import ImageArray
from diffussm_jax.sampling.inputs import image_labels
from diffussm_jax.sampling.job import Samples, draw_to
from diffussm_jax.sampling.options import EDIT_OPTIONS, with_edit, with_sample
from diffussm_jax.sampling.program import images_per_call
from diffussm_jax.shapes import ceil_div
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.lock import held
from diffussm_jax.workdir.weights import Weights, load_weights, params_sha256

logger = logging.getLogger(__name__)

# Sections of a run's config that the command which samples from it may replace.
_FREE_SECTIONS = ("model", "diffusion", "autoencoder", "mesh")
# Options that the images do not depend on, or that the facts of the model state more precisely.
_FREE_OPTIONS = {"num", "batch_size", "outputs", "ema", "ema_length", "autoguidance"}


class TrainedModel:
    """A model from a work directory or an export, ready to sample.

    Attributes:
        config: the config of its run.
        params: the EMA parameters, or the raw ones if asked for.
        step: the step of its checkpoint.
        class_names: None where the run had no labels.
        generator: what draws images with `params`.
        editor: what edits images with them.
    """

    def __init__(self, weights: Weights, workdir: Path, mesh: Mesh, *, latents: bool = False):
        self.config, self.params, self.step, self.class_names = weights
        self._mesh, self._draws_latents = mesh, latents
        graphdef, _ = abstract_model(self.config, mesh)
        autoencoder = None if latents else open_autoencoder(self.config, workdir, mesh)
        decode = None if latents else decoder_of(autoencoder)
        self.generator = Generator(self.config, graphdef, mesh, decode)
        self.editor = Editor(self.config, mesh, self.generator, autoencoder)

    def sample(self, classes: Iterable[SupportsIndex] | None = None, **options: Any) -> Drawn:
        """Draw one image for each class of `classes`, or `num` images.

        Args:
            classes: the class of each image; None for the labels that the options ask for, or an
                unconditional model.
            **options: fields of the config's sample section that differ from the run's: num, steps,
                sampler, cfg_scale, seed ...

        Raises:
            ConfigError: `classes` are no integers, or an option is unknown or does not fit them or
                the model.
        """
        sample = with_sample(self.config, classes, options).sample
        images, _ = self.generator.draw(self.params, sample)
        return images

    def edit(
        self,
        images: np.ndarray,
        kind: str = "img2img",
        *,
        masks: np.ndarray | None = None,
        classes: Iterable[SupportsIndex] | None = None,
        **options: Any,
    ) -> ImageArray:
        """Edit images of the model's size; docs/editing.md says what each kind does.

        Args:
            images: uint8 [num h w c].
            kind: img2img, inpaint, outpaint (with images of the rectangle's size), invert,
                interpolate or vary.
            masks: bool [num h w], True where inpainting draws; without them `rectangle` is drawn.
            classes: the class of each image; None for no label.
            **options: fields of the edit section (strength, num, target, rectangle, resamplings
                ...) and of the sample section (sampler, steps, cfg_scale, seed ...).

        Returns:
            `num` results of each image, or with "interpolate" between each image and the next.

        Raises:
            ConfigError: an option is unknown, or does not fit the others or the model.
            UserError: the images, the masks or the number of classes are others, or the model was
                loaded to draw latents.
        """
        if self._draws_latents:
            raise UserError("a model that was loaded with latents=True cannot edit: leave it out")
        config = with_edit(self.config, kind, classes, options)
        sources = make_sources(config, images, masks)
        labels = config.edit.classes
        if labels is not None and len(labels) != len(images):
            raise UserError(f"classes must be {len(images)}, one of each image, got {len(labels)}")
        num = num_results(config.edit, len(sources.images))
        sample = dataclasses.replace(config.sample, num=num)
        return self.editor.edit_range(self.params, sources, sample, config.edit, range(num))

    def edit_to(self, folder: Path, sources: Sources, config: Config) -> Samples:
        """Edit images as a config's edit section says into a folder; raises as `draw_to`.

        Args:
            sources: as `make_sources` makes them.
        """
        edit, num = config.edit, num_results(config.edit, len(sources.images))
        options = dataclasses.replace(config.sample, num=num)
        require_editable(dataclasses.replace(self.config, sample=options, edit=edit))
        used = {name: getattr(edit, name) for name in ("kind", *sorted(EDIT_OPTIONS))}
        facts = {"edit": used, "sources.sha256": sources.sha256()}
        return draw_to(
            folder,
            lambda indices: self.editor.edit_range(self.params, sources, options, edit, indices),
            num=num,
            range_size=self._range_size(options),
            facts=self._facts_of_a_job(options) | facts,
            labels=None,
        )

    def sample_to(self, folder: Path, options: SampleConfig) -> Samples:
        """Draw the images that a sample section asks for into a folder; raises as `draw_to`."""
        return draw_to(
            folder,
            lambda indices: self.generator.draw_range(self.params, options, indices),
            num=options.num,
            range_size=self._range_size(options),
            facts=self._facts_of_a_job(options),
            labels=image_labels(options, self.config.data.num_classes, np.arange(options.num)),
        )

    def _range_size(self, options: SampleConfig) -> int:
        call = images_per_call(options, self._mesh)
        return ceil_div(min(options.batch_size, options.num), call) * call

    def _facts_of_a_job(self, options: SampleConfig) -> dict[str, Any]:
        values = dataclasses.asdict(options)
        used = {name: x for name, x in values.items() if name not in _FREE_OPTIONS}
        return {"model": self.facts(options), "sample": used}

    def facts(self, options: SampleConfig) -> dict[str, Any]:
        """What the images depend on besides the sample section, as JSON.

        Weights are named by their checksum, and the sections that say how to compute them stand
        beside.
        """
        config, guide = self.config, self.generator.guide(options)
        facts: dict[str, Any] = {
            "step": self.step,
            "params.sha256": self._sha256,
            "model": dataclasses.asdict(config.model),
            "diffusion": dataclasses.asdict(config.diffusion),
        }
        if guide is not None:
            facts["autoguidance.sha256"] = params_sha256(guide.params)
        if self._draws_latents:
            facts["drawn"] = "latents"
        elif config.data.space == "latents":
            folder = find_autoencoder(config.autoencoder.name)
            facts["autoencoder.sha256"] = weights_sha256(folder)
        return facts

    @functools.cached_property
    def _sha256(self) -> str:
        return params_sha256(self.params)


def load(
    workdir: str | Path,
    *,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
    config: Config | None = None,
    latents: bool = False,
) -> TrainedModel:
    """Load the model of a work directory or an export.

    An export may be on the hub: `hf://USER/NAME@REVISION`, or without a revision the newest.

    In a job of several processes each has the complete model on its own devices.

    Args:
        step: of the checkpoint; None is the latest.
        ema: take the EMA parameters instead of the raw ones.
        ema_length: relative width of a power-function average to make of the run's snapshots,
            instead of its EMA.
        config: says how to compute the model, on which mesh, and where its autoencoder is; None is
            the run's own.
        latents: draw latents, float16, in place of images; no autoencoder is needed.

    Raises:
        UserError: there is no run, no such checkpoint, or it or the config is of another model.
    """
    workdir = as_path(expand(str(workdir)))
    if not isinstance(step, (Integral, NoneType)):
        raise UserError(f"step must be an integer, got {step!r}")
    own = layout.read_config(workdir)
    if config is not None:
        layout.require_same_model(workdir, config)
    start_jax()
    if jax.process_count() == 1:
        mesh = make_mesh((config or own).mesh)
    else:
        mesh = make_mesh(devices=jax.local_devices())
    weights = load_weights(workdir, mesh=mesh, step=step, ema=ema, ema_length=ema_length)
    if config is not None:
        sections = {name: getattr(config, name) for name in _FREE_SECTIONS}
        if config.model.dtype != own.model.dtype:
            logger.info(
                "activations are %s, as the run has them: --config.sample.dtype=%s samples in that",
                own.model.dtype,
                config.model.dtype,
            )
        dtypes = {name: getattr(own.model, name) for name in ("dtype", "residual_dtype")}
        sections["model"] = dataclasses.replace(config.model, **dtypes)
        weights = weights._replace(config=dataclasses.replace(own, **sections))
    else:  # what the run was trained by may be slow here
        model = dataclasses.replace(
            own.model, stack_implementation=None, attention_implementation=None
        )
        weights = weights._replace(config=dataclasses.replace(own, model=model))
    return TrainedModel(weights, workdir, mesh, latents=latents)


@contextlib.contextmanager
def sampled(
    config: Config, workdir: Path, options: SampleConfig, folder: Path, *, latents: bool = False
) -> Iterator[Samples]:
    """Draw images from a run into a folder, and hold them; after a kill the same call goes on.

    Args:
        config: must be of the run's model; says how to compute it, on which mesh.
        options: what to draw, and of which average of the weights.
        latents: draw latents, which are not decoded.

    Raises:
        UserError: there is no run or checkpoint, it does not fit the config, or another job has the
            folder.
    """
    with held(folder, named=str(folder)):
        ema, length = options.ema, options.ema_length
        model = load(workdir, ema=ema, ema_length=length, config=config, latents=latents)
        logger.info("sampling %d images from step %d", options.num, model.step)
        yield model.sample_to(folder, options)
