"""The sampler, its guidance and the model as one program on a mesh."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffussm_jax.config import Config, SampleConfig
from diffussm_jax.config.drawn import as_drawn
from diffussm_jax.diffusion import create_process, create_sampler
from diffussm_jax.diffusion.canvas import rolled, windowed
from diffussm_jax.diffusion.guidance import autoguidance, classifier_free, told, within
from diffussm_jax.diffusion.process import Denoiser
from diffussm_jax.parallel.mesh import check_rows, num_batch_parts, split_over_batch
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.shapes import Closed, Images, Labels, ceil_div
from diffussm_jax.training.state import abstract_model


def sampling_program(
    config: Config,
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    options: SampleConfig,
    guide: Config | None = None,
) -> Callable[..., jax.Array]:
    """Jit the sampler that `options` describe, autoencoder excepted.

    Args:
        config: of the model as it is called (`config.drawn`), as is `guide`.
        graphdef: of the model, on the axes that `closed_for_model` names.
        guide: the config of the model that autoguidance moves away from.

    Returns:
        A function of (params, the guide's params or None, seed, image indices [b], labels [b] or
        None) to what the model denoises, [b h w c], split over the batch axes of the mesh.

    Raises:
        UserError: the mesh does not divide the rows of tokens.
    """
    check_rows(config, mesh)
    shape = as_drawn(options, config).grid
    draw = create_sampler(config.diffusion, options)
    denoiser = make_denoiser(config, graphdef, mesh, options, guide)

    def run(
        params: dict,
        guide_params: dict | None,
        seed: int | Array,
        indices: Int[Array, " b"],
        labels: Labels | None,
    ) -> Images:
        keys = image_keys(seed, indices)
        return draw(denoiser(params, guide_params), keys, labels, shape=shape)

    return jax.jit(run, out_shardings=split_over_batch(mesh))


def make_denoiser(
    config: Config,
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    options: SampleConfig,
    guide: Config | None = None,
) -> Callable[[dict, dict | None], Denoiser]:
    """The function from the model's and its guide's parameters to the denoiser that is sampled.

    Args:
        config: as of `sampling_program`, as is `graphdef`.
        guide: the config of the model that autoguidance moves away from.
    """
    height, width, _ = config.grid
    guide_graphdef = None
    if guide is not None:
        guide_graphdef, _ = abstract_model(guide, mesh, closed=closed_for_model(options))

    def denoiser(params: dict, guide_params: dict | None) -> Denoiser:
        model = nnx.merge(graphdef, params).prepare(height, width)
        worse = None
        if guide_graphdef is not None and guide_params is not None:
            worse = nnx.merge(guide_graphdef, guide_params).prepare(height, width)
        return _on_canvas(config, options, _guided(config, options, model, worse))

    return denoiser


def _guided(
    config: Config, options: SampleConfig, model: Denoiser, guide: Denoiser | None
) -> Denoiser:
    scale, channels = options.cfg_scale, options.cfg_channels
    if guide is not None:
        guided = autoguidance(model, guide, scale, channels=channels)
    elif config.guidance.max_scale is not None:
        model, guided = told(model, 1.0), told(model, scale)
    elif config.data.num_classes:
        null = config.data.num_classes
        guided = classifier_free(model, scale, null_label=null, cfg_channels=channels)
    else:
        return model
    if options.cfg_interval is None:
        return guided
    return within(options.cfg_interval, guided, model, create_process(config.diffusion))


def _on_canvas(config: Config, options: SampleConfig, denoiser: Denoiser) -> Denoiser:
    closed, overlap = options.closed, options.window_overlap
    if overlap is not None:
        denoiser = windowed(denoiser, config.grid[:2], overlap=overlap, closed=closed)
    return rolled(denoiser, closed) if any(closed) else denoiser


def closed_for_model(options: SampleConfig) -> Closed:
    """The axes that are closed for the model itself; windows have edges."""
    return options.closed if options.window_overlap is None else (False, False)


def images_per_call(options: SampleConfig, mesh: Mesh) -> int:
    """Images that the devices draw at once.

    It is a microbatch for each device, or without one a batch, rounded up so that the devices share
    it evenly.
    """
    num_parts = num_batch_parts(mesh)
    rows = options.microbatch or ceil_div(min(options.batch_size, options.num), num_parts)
    return rows * num_parts
