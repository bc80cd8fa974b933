"""A published autoencoder on the devices: images to the moments of their latents, and latents to images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float16, UInt8

from diffussm_jax.autoencoder.network import AutoencoderKLConfig
from diffussm_jax.autoencoder.weights import find_autoencoder, load_autoencoder, weights_sha256
from diffussm_jax.config import Config
from diffussm_jax.data.transforms import from_uint8
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import BATCH_AXES, replicated, split_over_batch


class Autoencoder:
    """The autoencoder that a config names, its weights on every device of a mesh, batches split over them.

    Attributes:
        sha256: of its weights.

    Raises:
        UserError: it is missing, damaged, or does not fit the config.
    """

    def __init__(self, config: Config, mesh: Mesh):
        folder = find_autoencoder(config.autoencoder.name)
        self.sha256 = weights_sha256(folder)
        model = load_autoencoder(folder, dtype=config.autoencoder.dtype)
        _check(config, model.config)
        self._config, self._mesh = config.autoencoder, mesh
        self._graphdef, params = nnx.split(model, nnx.Param)
        self._params = jax.device_put(params, replicated(mesh))

    def encode(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> Float16[Array, "b mirrored=2 moments=2 _ _ z"]:
        """Mean and standard deviation, unscaled, of images and of their mirrors; b divides over the devices."""
        return self._encode(self._params, images)

    def decode(self, latents: Float[Array, "b _ _ z"]) -> Float[Array, "b _ _ 3"]:
        """Images, in about [-1, 1], of scaled latents; `autoencoder.batch_size` at a time on each device."""
        return self._decode(self._params, latents)

    @functools.cached_property
    def _encode(self):
        def encode(params, images):
            model = nnx.merge(self._graphdef, params)
            x = from_uint8(images)
            both = [jnp.stack(model.encode(side), 1) for side in (x, x[:, :, ::-1])]
            return jnp.stack(both, 1).astype(jnp.float16)

        whole, split = replicated(self._mesh), split_over_batch(self._mesh)
        return jax.jit(encode, in_shardings=(whole, split), out_shardings=split)

    @functools.cached_property
    def _decode(self):
        def decode(params, latents):
            model = nnx.merge(self._graphdef, params)
            size = self._config.batch_size
            return model.decode(latents / self._config.scale, slice_size=size)

        # A slice is of one device's images; of the whole batch it would gather them all.
        split = PartitionSpec(BATCH_AXES)
        return jax.jit(
            jax.shard_map(
                decode, mesh=self._mesh, in_specs=(PartitionSpec(), split), out_specs=split
            )
        )


def _check(config: Config, found: AutoencoderKLConfig) -> None:
    """Raise UserError unless the config describes the autoencoder that its files hold."""
    ours = config.autoencoder
    for field, wanted, value in (
        ("data.channels", config.data.channels, found.in_channels),
        ("autoencoder.factor", ours.factor, found.factor),
        ("autoencoder.channels", ours.channels, found.latent_channels),
        ("autoencoder.scale", ours.scale, found.scaling_factor),
    ):
        if wanted != value:
            raise UserError(
                f"config.{field} = {wanted}, but autoencoder {ours.name!r} has {value}: set it to that"
            )
