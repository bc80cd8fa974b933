"""How strongly a token feels another: derivatives of a mixer, for every kind of mixer alike.

S_ij = ||dy_i / dx_j||_F / sqrt(e), where y_i has e features: the root mean square over these of the
response in token i to a direction v of +-1 in each feature of token j. Where the function is linear
and the same for each feature, y_i = sum_j M_ij x_j, S = |M| exactly, for any v. Otherwise the mean
over random v has the Frobenius norm as its limit (Hutchinson 1990).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffussm_jax.inspection.geometry import root_mean_square

Sensitivity = Float[Array, "b i s"]


def sensitivity(
    function: Callable[[Array], Array],
    x: Float[Array, "b l *f"],
    tokens: Int[np.ndarray, " s"],
    *,
    key: Key[Array, ""],
    num_probes: int,
) -> Sensitivity:
    """S_ij of every token i for the given tokens j.

    The images of a batch have the same directions, so that an operator which does not depend on the
    image gives the same for all.

    Args:
        function: acts on each image of the batch alone; its second axis has the tokens.
    """
    features = x.shape[2:]
    directions = jax.random.rademacher(key, (num_probes, *features), x.dtype)

    def response(token: Array, direction: Array) -> Float[Array, "b i"]:
        tangent = jnp.zeros_like(x).at[:, token].set(direction)
        _, dy = jax.jvp(function, (x,), (tangent,))
        return jnp.mean(jnp.square(dy.astype(jnp.float32).reshape(*dy.shape[:2], -1)), axis=-1)

    def mean_square(token: Array) -> Float[Array, "b i"]:
        return jnp.mean(jax.lax.map(lambda v: response(token, v), directions), axis=0)

    squares = jax.lax.map(mean_square, jnp.asarray(tokens))
    return jnp.moveaxis(jnp.sqrt(squares), 0, -1)


def summary(
    s: Float[Array | np.ndarray, "b i s"], squares: Float[np.ndarray, "i s"], *, middle: int
) -> dict[str, Any]:
    """What a report says of S: incoming mass, its variance over images, the effective field.

    Args:
        squares: squared distances of the tokens i and j.
        middle: which of the tokens j is in the middle of the image.
    """
    wide = np.asarray(s, np.float64)
    incoming = wide.sum(axis=1)  # b s
    mean = incoming.mean(axis=1, keepdims=True)
    incoming = incoming / np.where(mean > 0, mean, 1)
    return {
        "incoming": incoming.mean(axis=0),
        "incoming_variance_over_images": float(incoming.var(axis=0).mean()),
        "effective_field": float(root_mean_square(np.square(wide), squares).mean()),
        "of_the_middle_token": wide[:, :, middle].mean(axis=0),
    }
