"""Power-function averages of the parameters, and sums of them that are averages of other lengths.

Karras et al. 2024 ("EDM2", arXiv 2312.02696), section 3 and appendix C. An average at step t weighs the parameters of step tau by
tau^gamma; its length is the standard deviation of that weight over t, `width` here and sigma_rel there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def exponent(width: float) -> float:
    """gamma of an average of relative width sigma_rel (eq. 6; algorithm 2)."""
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), as a cubic
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def update(average: dict, params: dict, step: Array, *, width: float) -> dict:
    """The average after step `step` = 1, 2 ..., from that of the step before (eq. 8).

    beta = (1 - 1/t)^(gamma + 1), by which the first step's parameters replace those of before.
    """
    t = step.astype(jnp.float32)
    gain = -jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / t))  # 1 - beta
    return jax.tree.map(lambda a, p: a + gain * (p - a), average, params)


def coefficients(
    steps: Sequence[int], widths: Sequence[float], *, step: int, width: float
) -> np.ndarray:
    """Weights of averages whose sum is nearest, in least squares over training time, to the average wanted (algorithm 3)."""
    t, gamma = np.asarray(steps, float), np.array([exponent(x) for x in widths])
    wanted = np.full(1, float(step)), np.full(1, exponent(width))
    products = inner_products(t[:, None], gamma[:, None], t[None], gamma[None])
    with_wanted = inner_products(t[:, None], gamma[:, None], *wanted)[:, 0]
    return np.linalg.solve(products, with_wanted)


def inner_products(t_a, gamma_a, t_b, gamma_b) -> np.ndarray:
    """Integral over time of the product of two weights, each (gamma + 1) tau^gamma / t^(gamma + 1) up to its t (eq. 19)."""
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    of_the_later = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (first / last) ** of_the_later / last
