"""A published autoencoder on the devices: images to moments of latents, and latents to images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float16, UInt8

from diffussm_jax.autoencoder.network import AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import find_autoencoder, load_autoencoder, weights_sha256
from diffussm_jax.config import Config
from diffussm_jax.config.parsing import get_field
from diffussm_jax.data.transforms import from_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import BATCH_AXES, replicated, split_over_batch
from diffussm_jax.shapes import Closed


class Autoencoder:
    """The autoencoder that a config names, on a mesh: a device has all weights and part of a batch.

    Attributes:
        sha256: the SHA-256 of the file of its weights.

    Raises:
        UserError: it is missing, damaged, or does not fit the config.
    """

    def __init__(self, config: Config, mesh: Mesh):
        folder = find_autoencoder(config.autoencoder.name)
        self.sha256 = weights_sha256(folder)
        model = load_autoencoder(folder, dtype=config.autoencoder.dtype)
        _require_same(config, model.config)
        self._config, self._mesh = config.autoencoder, mesh
        self._reach = model.config.decoder_reach
        self._graphdef, params = nnx.split(model, nnx.Param)
        self._params = jax.device_put(params, replicated(mesh))

    def encode(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> Float16[Array, "b mirrored=2 moments=2 _ _ z"]:
        """Encode images and their mirrors to the unscaled mean and standard deviation of latents.

        The number of devices must divide b.
        """
        return self._encode(self._params, images)

    def decode(
        self, latents: Float[Array, "b _ _ z"], closed: Closed = (False, False)
    ) -> Float[Array, "b _ _ 3"]:
        """Decode scaled latents to images in about [-1, 1].

        Each device decodes `autoencoder.batch_size` of them at a time. Along closed axes the
        latents go on beyond their edges as far as the decoder's convolutions reach, and the pixels
        are cut: both edges are then the inside of one picture.
        """
        reach, factor = self._reach, self._config.factor
        rows, columns = (reach * is_closed for is_closed in closed)
        around = ((0, 0), (rows, rows), (columns, columns), (0, 0))
        images = self._decode(self._params, jnp.pad(latents, around, mode="wrap"))
        height, width = (side * factor for side in latents.shape[1:3])
        top, left = rows * factor, columns * factor
        return images[:, top : top + height, left : left + width]

    @functools.cached_property
    def _encode(self) -> Callable[[Any, np.ndarray], Array]:
        def encode(params: Any, images: Array) -> Array:
            model = nnx.merge(self._graphdef, params)
            x = from_uint8(images)
            both = [jnp.stack(model.encode(side), 1) for side in (x, x[:, :, ::-1])]
            return jnp.stack(both, 1).astype(jnp.float16)

        everywhere, split = replicated(self._mesh), split_over_batch(self._mesh)
        return jax.jit(encode, in_shardings=(everywhere, split), out_shardings=split)

    @functools.cached_property
    def _decode(self) -> Callable[[Any, Array], Array]:
        def decode(params: Any, latents: Array) -> Array:
            model = nnx.merge(self._graphdef, params)
            size = self._config.batch_size
            return model.decode(latents / self._config.scale, slice_size=size)

        # Slices are cut from each device's own images: cut from the batch they would gather it.
        split = PartitionSpec(BATCH_AXES)
        on_each = jax.shard_map(
            decode, mesh=self._mesh, in_specs=(PartitionSpec(), split), out_specs=split
        )
        return jax.jit(on_each)


def _require_same(config: Config, published: AutoencoderKLConfig) -> None:
    """Raise UserError unless the config describes the autoencoder that the files hold."""
    for field, theirs in (
        ("data.channels", published.in_channels),
        ("autoencoder.factor", published.factor),
        ("autoencoder.channels", published.latent_channels),
        ("autoencoder.scale", published.scaling_factor),
    ):
        ours = get_field(config, field)
        if ours != theirs:
            raise UserError(
                f"config.{field} = {ours}, but autoencoder {config.autoencoder.name!r} has "
                f"{theirs}: set it to that"
            )
