"""What an export draws, beside it: images to verify it by, and a picture for its model card."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp

from diffussm_jax.config import Config
from diffussm_jax.data.transforms import to_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.feed import place, to_host
from diffussm_jax.parallel.mesh import make_mesh, state_shardings
from diffussm_jax.sampling.generator import Drawn, decoder_of, open_autoencoder
from diffussm_jax.sampling.images import ImageArray, as_png, make_grid
from diffussm_jax.sampling.model import TrainedModel
from diffussm_jax.sampling.verification import draw_evidence, num_calls
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.weights import Weights

logger = logging.getLogger(__name__)


def evidence_files(weights: Weights, workdir: Path) -> dict[str, bytes]:
    """The files by name.

    Args:
        weights: the parameters are on the host, and the config is that of the export.
        workdir: of the run.
    """
    model = dataclasses.replace(
        weights.config.model, stack_implementation=None, attention_implementation=None
    )
    config = dataclasses.replace(weights.config, model=model)
    mesh = make_mesh(devices=jax.local_devices())
    params = place(weights.params, state_shardings(mesh, weights.params))
    is_latent = config.data.space == "latents"
    trained = TrainedModel(
        weights._replace(config=config, params=params), workdir, mesh, latents=is_latent
    )
    logger.info("drawing images to verify the export by, in %d calls", num_calls(config))
    files, drawn = draw_evidence(trained)
    images = _decoded(config, workdir, drawn) if is_latent else drawn
    return files if images is None else files | {layout.PICTURE_FILE: as_png(make_grid(images))}


def _decoded(config: Config, workdir: Path, latents: Drawn) -> ImageArray | None:
    """The images of latents; None where the autoencoder is not at hand."""
    mesh = make_mesh(devices=jax.local_devices()[:1])
    try:
        decode = decoder_of(open_autoencoder(config, workdir, mesh))
    except UserError as error:
        logger.warning("no picture for the model card: %s", error)
        return None
    scaled = jnp.asarray(latents, jnp.float32) * config.autoencoder.scale
    return to_uint8(to_host(decode(scaled, (False, False))))
