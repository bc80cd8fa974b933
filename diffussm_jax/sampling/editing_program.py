"""An edit of images as one program on a mesh: noise or reverse them, then sample."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from diffussm_jax.config import Config, EditConfig, SampleConfig
from diffussm_jax.config.editing_rules import INVERTING
from diffussm_jax.diffusion.inpainting import inpaint
from diffussm_jax.diffusion.inversion import invert, slerp
from diffussm_jax.diffusion.levels import Given, Levels, make_levels
from diffussm_jax.diffusion.samplers import START, image_noise
from diffussm_jax.parallel.mesh import check_rows, split_over_batch
from diffussm_jax.sampling.inputs import image_keys
from diffussm_jax.sampling.program import make_denoiser
from diffussm_jax.shapes import Images, Labels


class EditInputs(NamedTuple):
    """What each result is made of.

    Attributes:
        x0: the image, as the model denoises it.
        y: its label; None for a model without classes.
        target: the label that the result is drawn as.
        mask: what inpainting draws, True; None for other kinds.
        other, other_y, weight: the image to interpolate to, its label, and how far; else None.
    """

    x0: Images
    y: Labels | None = None
    target: Labels | None = None
    mask: Bool[Array, "b h w 1"] | None = None
    other: Images | None = None
    other_y: Labels | None = None
    weight: Float[Array, " b"] | None = None


def editing_program(
    config: Config,
    graphdef: nnx.GraphDef,
    mesh: Mesh,
    options: SampleConfig,
    edit: EditConfig,
    guide: Config | None = None,
) -> Callable[..., jax.Array]:
    """Jit an edit, autoencoder excepted.

    Args:
        config: as of `sampling_program`, as is `graphdef`.
        options: the sampler, and which part of the images the model sees at once.
        edit: the kind of the edit, and its options.
        guide: the config of the model that autoguidance moves away from.

    Returns:
        A function of (params, the guide's params or None, seed, result indices [b], EditInputs) to
        what the model denoises, [b h w c], split over the batch axes of the mesh.

    Raises:
        UserError: the mesh does not divide the rows of tokens.
    """
    check_rows(config, mesh)
    denoiser = make_denoiser(config, graphdef, mesh, options, guide)
    num_steps = _num_steps(options, edit) if edit.kind == "img2img" else None
    levels = make_levels(config.diffusion, options, num_steps=num_steps)

    def run(
        params: dict,
        guide_params: dict | None,
        seed: int | Array,
        indices: Int[Array, " b"],
        inputs: EditInputs,
    ) -> Images:
        given = Given(denoiser(params, guide_params), image_keys(seed, indices), inputs.target)
        if edit.kind in INVERTING:
            return levels.descend(given, _noise(levels, given, edit, inputs))
        if inputs.mask is None:
            return levels.redraw(given, inputs.x0)
        jumps = {"jump_length": edit.jump_length, "resamplings": edit.resamplings}
        return inpaint(levels, given, inputs.x0, inputs.mask, **jumps)

    return jax.jit(run, out_shardings=split_over_batch(mesh))


def _num_steps(options: SampleConfig, edit: EditConfig) -> int:
    """The steps that an image is noised by and drawn with again, at least one."""
    return max(1, round(edit.strength * options.steps))


def _noise(levels: Levels, given: Given, edit: EditConfig, inputs: EditInputs) -> Images:
    """The noise that a result is drawn from: that of its image, or near to it."""

    def noise_of(x0: Images, y: Labels | None) -> Images:
        return invert(levels, given._replace(y=y), x0, iterations=edit.iterations)

    noise = noise_of(inputs.x0, inputs.y)
    if edit.kind == "vary":
        # As far from the image's noise as the strength says, and of the same variance.
        fresh = image_noise(given.keys, START, noise.shape[1:])
        return jnp.sqrt(1 - edit.strength**2) * noise + edit.strength * fresh
    if inputs.other is not None and inputs.weight is not None:
        return slerp(noise, noise_of(inputs.other, inputs.other_y), inputs.weight)
    return noise
