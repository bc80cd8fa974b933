"""`--mode=sample`, and sampling from Python: load a work directory, ask for classes, get images."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from diffussm_jax.autoencoder.weights import find_autoencoder, weights_sha256
from diffussm_jax.config import Config, SampleConfig, from_dict
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.sampling.generator import Generator, make_decoder
from diffussm_jax.sampling.images import ImageArray, LabelArray
from diffussm_jax.sampling.program import images_per_call
from diffussm_jax.training.state import abstract_model
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.weights import Weights, load_weights

logger = logging.getLogger(__name__)


class TrainedModel:
    """A model from a work directory or an export, ready to sample.

    Attributes:
        config: of its run.
        params: the EMA parameters, or the raw ones if asked for.
        step: of its checkpoint.
        class_names: None where the run had no labels.
    """

    def __init__(self, weights: Weights, workdir: Path, mesh: Mesh):
        self.config, self.params, self.step, self.class_names = weights
        self._mesh = mesh
        graphdef, _ = abstract_model(self.config, mesh)
        decode = make_decoder(self.config, workdir, mesh)
        self._generator = Generator(self.config, graphdef, mesh, decode)

    @property
    def num_classes(self) -> int:
        return self.config.data.num_classes

    def draw(self, options: SampleConfig) -> tuple[ImageArray, LabelArray | None]:
        """The images that a sample section asks for, and their labels (None without classes)."""
        return self._generator.draw(self.params, options)

    def draw_range(self, options: SampleConfig, indices: range) -> ImageArray:
        """Those of them at consecutive indices."""
        return self._generator.draw_range(self.params, options, indices)

    def images_per_call(self, options: SampleConfig) -> int:
        """How many images the devices draw at once."""
        return images_per_call(options, self._mesh)

    def facts(self, options: SampleConfig) -> dict[str, Any]:
        """What images depend on besides the sample section: weights by their checksum, and how they are computed."""
        config, guide = self.config, self._generator.guide(options)
        found: dict[str, Any] = {
            "step": self.step,
            "params.sha256": self._sha256,
            "model": dataclasses.asdict(config.model),
            "diffusion": dataclasses.asdict(config.diffusion),
        }
        if guide is not None:
            found["autoguidance.sha256"] = params_sha256(guide.params)
        if config.data.space == "latents":
            folder = find_autoencoder(config.autoencoder.name)
            found["autoencoder.sha256"] = weights_sha256(folder)
        return found

    @functools.cached_property
    def _sha256(self) -> str:
        return params_sha256(self.params)

    def sample(self, classes: Sequence[int] | None = None, **options) -> ImageArray:
        """Draw one image for each class of `classes`, or `num` images.

        Args:
            classes: class of each image; None for the labels that the options ask for, or an unconditional model.
            **options: fields of the config's sample section that differ from the run's: num, steps,
                sampler, cfg_scale, seed ...
        """
        if classes is not None:
            listed = tuple(int(y) for y in classes)
            options |= {"labels": "list", "classes": listed, "num": len(classes)}
        values = dataclasses.asdict(self.config)
        values["sample"] |= options
        return self.draw(from_dict(values).sample)[0]


def load(
    workdir: str | Path,
    *,
    step: int | None = None,
    ema: bool = True,
    ema_length: float | None = None,
    config: Config | None = None,
) -> TrainedModel:
    """The model of a work directory, from its latest checkpoint or the one of `step`, or that of an export.

    In a job of several processes each has the whole model on its own devices.

    Args:
        ema_length: relative width of a power-function average to make of the run's snapshots, instead of its EMA.
        config: says how to compute the model, on which mesh, and where its autoencoder is; None: as its run did.

    Raises:
        UserError: there is no run, no such checkpoint, or the checkpoint is of another model.
    """
    workdir = Path(workdir)
    own = layout.read_config(workdir)
    if jax.process_count() == 1:
        mesh = make_mesh((config or own).mesh)
    else:
        mesh = make_mesh(devices=jax.local_devices())
    weights = load_weights(workdir, mesh=mesh, step=step, ema=ema, ema_length=ema_length)
    if config is not None:
        sections = {name: getattr(config, name) for name in _FREE_SECTIONS}
        weights = weights._replace(config=dataclasses.replace(own, **sections))
    return TrainedModel(weights, workdir, mesh)


# A run's own, unless the command that samples from it says otherwise.
_FREE_SECTIONS = ("model", "diffusion", "autoencoder", "mesh")


def params_sha256(params: dict) -> str:
    """The checksum of parameters: their names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(params, sep=".").items()):
        digest.update(f"{name} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
