"""Denoisers of canvases that a network was not trained on: closed ones, and larger ones.

An axis of a canvas is closed if its two edges meet: a tile is closed along x and y, a panorama
along x. The network itself always sees edges, of its windows or of its position code.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from diffussm_jax.diffusion.process import Denoiser
from diffussm_jax.shapes import Closed, Conditions, Grid, Images, Labels, ceil_div

Places = Int[np.ndarray, " _"]  # of a window, along an axis of its canvas
Windows = list[tuple[Places, Places]]  # rows and columns of each


def rolled(model: Denoiser, closed: Closed) -> Denoiser:
    """Roll x_t along the closed axes before the model is called, and its output back.

    The offset is drawn for each time, so that over the steps no place of the canvas is at an edge
    of the network's for long. It is a function of the time alone, and so the same for all images.
    """

    def denoise(x_t: Images, t: Conditions, y: Labels | None) -> Array:
        time = t.reshape(len(t), -1)[0, 0].astype(jnp.float32)
        bits = jax.lax.bitcast_convert_type(time, jnp.uint32)
        sides = x_t.shape[1:3]
        place = jax.random.randint(jax.random.key(bits), (2,), 0, np.array(sides))
        dy, dx = jnp.where(np.array(closed), place, 0)
        output = model(jnp.roll(x_t, (dy, dx), axis=(1, 2)), t, y)
        return jnp.roll(output, (-dy, -dx), axis=(1, 2))

    return denoise


def windowed(
    model: Denoiser, window: Grid, *, overlap: float, closed: Closed = (False, False)
) -> Denoiser:
    """Call the model on windows of a larger canvas, and average where they overlap.

    MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5), with weights that fall towards a
    window's edges: equal ones leave a trace there. The windows of an image are one batch. Along
    closed axes they lie across the edges too.

    Args:
        window: height and width of what the model is called with.
        overlap: share of a window, below 1, that the next one covers at least.
    """

    def denoise(x_t: Images, t: Conditions, y: Labels | None) -> Array:
        b, height, width, _ = x_t.shape
        places = window_places((height, width), window, overlap, closed)
        parts = jnp.stack([x_t[:, rows[:, None], columns] for rows, columns in places], axis=1)
        # Those of an image follow each other, and so are on its own device.
        times = jnp.repeat(t, len(places), axis=0)
        labels = None if y is None else jnp.repeat(y, len(places))
        output = model(parts.reshape(-1, *parts.shape[2:]), times, labels)
        output = output.reshape(b, len(places), *output.shape[1:])
        mean = jnp.zeros((b, height, width, output.shape[-1]), output.dtype)
        shares = _shares((height, width), places)
        for index, (rows, columns) in enumerate(places):
            mean = mean.at[:, rows[:, None], columns].add(shares[index] * output[:, index])
        return mean

    return denoise


def window_places(canvas: Grid, window: Grid, overlap: float, closed: Closed) -> Windows:
    """The rows and the columns of each window, in raster order."""
    axes = zip(canvas, window, closed, strict=True)
    rows, columns = (_along(*of_axis, overlap=overlap) for of_axis in axes)
    return list(itertools.product(rows, columns))


def _shares(canvas: Grid, windows: Windows) -> list[Float32[np.ndarray, "h w 1"]]:
    """The weight of each window's places in the mean: they fall linearly towards its edges."""
    rows, columns = (np.arange(len(axis)) + 1 for axis in windows[0])
    weight = np.outer(np.minimum(rows, rows[::-1]), np.minimum(columns, columns[::-1]))
    total = np.zeros(canvas)
    for rows, columns in windows:
        total[rows[:, None], columns] += weight
    totals = (total[rows[:, None], columns, None] for rows, columns in windows)
    return [(weight[..., None] / total).astype(np.float32) for total in totals]


def _along(size: int, window: int, is_closed: bool, *, overlap: float) -> list[Places]:
    """The places of each window along an axis, which they cover evenly."""
    stride = max(1, int(round(window * (1 - overlap), 6)))  # not 1.999... of 2
    if is_closed:
        num = ceil_div(size, stride)
        starts = np.arange(num) * size // num
    else:
        starts = np.linspace(0, size - window, 1 + ceil_div(size - window, stride)).astype(int)
    return [(start + np.arange(window)) % size for start in starts]
