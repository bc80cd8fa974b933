"""InceptionV3 as TensorFlow published it on 2015-12-05: the network behind FID.

Szegedy et al. 2016; Heusel et al. 2017. It is not the InceptionV3 of today's libraries: it has 1008
classes, average pools that leave out the padding, a maximum in the last block's pool, and the
resize of TensorFlow 1. Layers have the names of the published PyTorch copy,
`pt_inception-2015-12-05`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import lax
from jaxtyping import Array, Float, UInt8

from diffussm_jax.errors import UserError
from diffussm_jax.files import on_disk
from diffussm_jax.files.paths import as_path

Maps = Float[Array, "b _ _ _"]
Weights = dict[str, np.ndarray]
# Gives the weight of this name and shape.
Take = Callable[[str, tuple[int, ...]], jax.Array]
Layer = tuple[str, int, int | tuple[int, int]]  # name, filters, window

IMAGE_SIZE = 299
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7  # the first channels of `mixed_6/conv`, which sFID looks at
# How the checksum of the published file begins; the file is named after it.
PUBLISHED_SHA256 = "6726825d"
CONVERT = "python -m diffussm_jax.convert.inception pt_inception-2015-12-05-6726825d.pth TARGET"


def load_inception(path: str | Path) -> tuple[Weights, dict[str, str]]:
    """Read a file that the converter wrote.

    Returns:
        The weights, and the SHA-256 of them (`weights_sha256`) and of their source
        (`source_sha256`).

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else.
    """
    try:
        with on_disk(as_path(path)) as local:
            weights = safetensors.numpy.load_file(local)
            with safetensors.safe_open(local, "numpy") as file:
                hashes = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"Inception's weights {path} cannot be read ({error}): make them with {CONVERT}"
        ) from error
    if {name: array.shape for name, array in weights.items()} != weight_shapes():
        raise UserError(f"{path} does not hold Inception's weights: make them with {CONVERT}")
    if hashes.get("weights_sha256") != _sha256(weights):
        raise UserError(f"{path} is damaged: its weights have another sha256 than it says")
    return weights, hashes


def save_inception(path: str | Path, weights: Weights, *, source_sha256: str) -> None:
    """Write what `load_inception` reads."""
    hashes = {"source_sha256": source_sha256, "weights_sha256": _sha256(weights)}
    safetensors.numpy.save_file(weights, path, metadata=hashes)


def _sha256(weights: Weights) -> str:
    """SHA-256 of the arrays' bytes in the order of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by name.

    A `kernel` is [height width in out], with the batch norm's scale multiplied in.
    """
    shapes = {}

    def take(name: str, shape: tuple[int, ...]) -> jax.Array:
        shapes[name] = shape
        return jnp.zeros(shape)

    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
    jax.eval_shape(lambda x: _network(take, x), images)
    return shapes


def inception(
    weights: Mapping[str, Array], images: UInt8[Array, "b h w 3"]
) -> dict[str, Float[Array, "b _"]]:
    """Run the network and take from it what ADM's evaluator takes.

    Returns:
        pool: `pool_3` [b 2048], for FID, precision and recall.
        spatial: the first 7 channels of `mixed_6/conv` at 17 x 17 places, flat, for sFID.
        probabilities: [b 1008], by the last layer without its bias, for the Inception Score.
    """
    return _network(lambda name, shape: weights[name], images)


def resize_as_tensorflow_1(
    images: Float[Array, "b h w c"], size: int
) -> Float[Array, "b size size c"]:
    """Resize as TensorFlow 1's `ResizeBilinear` does with its defaults.

    It does not smooth before shrinking, and places pixel i of n at i / n. Other evaluators place
    pixels by their centres or smooth first, which moves FID.
    """
    rows, columns = (_interpolation(n, size) for n in images.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=lax.Precision.HIGHEST)


def _interpolation(size: int, new_size: int) -> Float[np.ndarray, "new size"]:
    places = np.arange(new_size, dtype=np.float32) * np.float32(size / new_size)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((new_size, size), np.float32)
    np.add.at(matrix, (np.arange(new_size), low), 1 - (places - low))
    np.add.at(matrix, (np.arange(new_size), high), places - low)
    return matrix


@dataclasses.dataclass(frozen=True)
class _Block:
    """The convolutions of one block, by name, each followed by a ReLU."""

    take: Take
    name: str

    def conv(
        self,
        x: Maps,
        layer: str,
        filters: int,
        window: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: str = "SAME",
    ) -> Maps:
        window = (window, window) if isinstance(window, int) else window
        name = f"{self.name}.{layer}" if self.name else layer
        kernel = self.take(f"{name}.kernel", (*window, x.shape[-1], filters))
        bias = self.take(f"{name}.bias", (filters,))
        y = lax.conv_general_dilated(
            x,
            jnp.asarray(kernel),
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(y + bias)

    def shrink(self, x: Maps, layer: str, filters: int) -> Maps:
        """A 3 x 3 convolution at every second place, without padding."""
        return self.conv(x, layer, filters, 3, stride=2, padding="VALID")

    def chain(self, x: Maps, *layers: Layer) -> Maps:
        for layer in layers:
            x = self.conv(x, *layer)
        return x


def _network(take: Take, images: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
    x = resize_as_tensorflow_1(images.astype(jnp.float32), IMAGE_SIZE)
    x = _stem(_Block(take, ""), (x - 128) / 128)  # b 35 35 192
    for name, pool_filters in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = _block_a(_Block(take, f"Mixed_{name}"), x, pool_filters)
    x = _block_b(_Block(take, "Mixed_6a"), x)  # b 17 17 768
    for name, filters in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = _block_c(_Block(take, f"Mixed_{name}"), x, filters)
        if name == "6d":  # TensorFlow's mixed_6, whose first branch comes first
            spatial = x[..., :SPATIAL_CHANNELS]
    x = _block_d(_Block(take, "Mixed_7a"), x)  # b 8 8 1280
    x = _block_e(_Block(take, "Mixed_7b"), x, _average_pool)
    x = _block_e(_Block(take, "Mixed_7c"), x, _max_pool)
    pool = x.mean(axis=(1, 2))  # b 2048
    kernel = take("fc.kernel", (pool.shape[-1], NUM_CLASSES))
    logits = jnp.matmul(pool, kernel, precision=lax.Precision.HIGHEST)
    return {
        "pool": pool,
        "spatial": spatial.reshape(len(spatial), -1),
        "probabilities": jax.nn.softmax(logits),
    }


def _stem(block: _Block, x: Maps) -> Maps:
    x = block.shrink(x, "Conv2d_1a_3x3", 32)
    x = block.conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
    x = block.conv(x, "Conv2d_2b_3x3", 64, 3)
    x = _max_pool(x, stride=2, padding="VALID")
    x = block.conv(x, "Conv2d_3b_1x1", 80)
    x = block.conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
    return _max_pool(x, stride=2, padding="VALID")


def _block_a(block: _Block, x: Maps, pool_filters: int) -> Maps:
    branches = (
        block.conv(x, "branch1x1", 64),
        block.chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        block.chain(
            x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)
        ),
        block.conv(_average_pool(x), "branch_pool", pool_filters),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_b(block: _Block, x: Maps) -> Maps:
    double = block.chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
    branches = (
        block.shrink(x, "branch3x3", 384),
        block.shrink(double, "branch3x3dbl_3", 96),
        _max_pool(x, stride=2, padding="VALID"),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_c(block: _Block, x: Maps, filters: int) -> Maps:
    branches = (
        block.conv(x, "branch1x1", 192),
        block.chain(
            x,
            ("branch7x7_1", filters, 1),
            ("branch7x7_2", filters, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        ),
        block.chain(
            x,
            ("branch7x7dbl_1", filters, 1),
            ("branch7x7dbl_2", filters, (7, 1)),
            ("branch7x7dbl_3", filters, (1, 7)),
            ("branch7x7dbl_4", filters, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
        block.conv(_average_pool(x), "branch_pool", 192),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_d(block: _Block, x: Maps) -> Maps:
    three = block.conv(x, "branch3x3_1", 192)
    seven = block.chain(
        x, ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
    )
    branches = (
        block.shrink(three, "branch3x3_2", 320),
        block.shrink(seven, "branch7x7x3_4", 192),
        _max_pool(x, stride=2, padding="VALID"),
    )
    return jnp.concatenate(branches, axis=-1)


def _block_e(block: _Block, x: Maps, pool: Callable[[Maps], Maps]) -> Maps:
    three = block.conv(x, "branch3x3_1", 384)
    double = block.chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    branches = (
        block.conv(x, "branch1x1", 320),
        block.conv(three, "branch3x3_2a", 384, (1, 3)),
        block.conv(three, "branch3x3_2b", 384, (3, 1)),
        block.conv(double, "branch3x3dbl_3a", 384, (1, 3)),
        block.conv(double, "branch3x3dbl_3b", 384, (3, 1)),
        block.conv(pool(x), "branch_pool", 192),
    )
    return jnp.concatenate(branches, axis=-1)


def _max_pool(x: Maps, *, stride: int = 1, padding: str = "SAME") -> Maps:
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def _average_pool(x: Maps) -> Maps:
    """The mean over 3 x 3 places, at the border over those inside the image."""
    window, strides = (1, 3, 3, 1), (1, 1, 1, 1)
    sums = lax.reduce_window(x, 0.0, lax.add, window, strides, "SAME")
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return sums / lax.reduce_window(ones, 0.0, lax.add, window, strides, "SAME")
