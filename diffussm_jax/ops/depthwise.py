"""Convolution of an image by square kernels: depthwise, one for each channel, or dense."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffussm_jax.shapes import Images

Rows = Float[Array, "b i w c"]  # those of an image, or with a halo's
Kernel = Float[Array, "k k f o"]  # of an odd side k; f is 1 for depthwise ones, else channels of x
Convolved = Float[Array, "b h w o"]
Convolve = Callable[[Images, Kernel], Convolved]

# With more, `product` has more multiply-adds than its speed makes up for. With fewer it is many
# times as fast on a CPU as XLA's convolution of many groups, above all the gradients.
MAX_PRODUCT_TOKENS = 256


def convolve(
    x: Rows, kernel: Kernel, *, has_halo: bool = False, platform: str | None = None
) -> Convolved:
    """y[i, j] = sum over u and v of kernel[u, v] x[i + u - k // 2, j + v - k // 2].

    That is for each channel of a depthwise kernel; a dense one also sums over the channels of x.
    Beyond the edges x is zero.

    Args:
        has_halo: whether x has k // 2 rows more than y, above as well as below.
        platform: of the device that will run it; None is this process's default.
    """
    is_small = x.shape[1] * x.shape[2] <= MAX_PRODUCT_TOKENS
    is_depthwise = kernel.shape[2:] == (1, x.shape[-1])
    if is_small and is_depthwise and (platform or jax.default_backend()) == "cpu":
        # The backward pass makes the matrices again, which are larger than x.
        return jax.checkpoint(functools.partial(product, has_halo=has_halo))(x, kernel)
    return convolution(x, kernel, has_halo=has_halo)


def wrapped(x: Images, halo: int, *, axis: int) -> Float[Array, "b i o c"]:
    """Put `halo` rows, or columns, from the other edge beyond each edge."""
    width = [(halo, halo) if index == axis else (0, 0) for index in range(x.ndim)]
    return jnp.pad(x, width, mode="wrap")


def convolution(x: Rows, kernel: Kernel, *, has_halo: bool = False) -> Convolved:
    """`convolve` as XLA's convolution, by depthwise kernels in as many groups as channels."""
    halo = kernel.shape[0] // 2
    rows = 0 if has_halo else halo
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((rows, rows), (halo, halo)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def product(x: Rows, kernel: Float[Array, "k k 1 c"], *, has_halo: bool = False) -> Images:
    """`convolve` by depthwise kernels as one product with a matrix [h w, h w] for each channel."""
    k, (_, h, w, _) = len(kernel), x.shape
    columns, has_column = taps(w, k)
    matrix = jnp.where(has_column[..., None], kernel[:, columns, 0], 0)  # k w v c
    rows, has_row = taps(h, k, halo=k // 2 if has_halo else 0)
    matrix = jnp.where(has_row[..., None, None, None], matrix[rows], 0)  # h g w v c
    return jnp.einsum("bhwc,hgwvc->bgvc", x, matrix)


def taps(
    size: int, k: int, *, halo: int = 0
) -> tuple[Int[np.ndarray, "i o"], Bool[np.ndarray, "i o"]]:
    """Which of k taps leads from each input to each output along an axis, and whether one does."""
    tap = np.arange(size)[:, None] - halo - np.arange(size - 2 * halo) + k // 2
    return np.clip(tap, 0, k - 1), (tap >= 0) & (tap < k)
