"""Power-function averages of the parameters, and their sums that approximate other averages.

Source: Karras et al. 2024 ("EDM2", arXiv 2312.02696), section 3 and appendix C. An average at step
t weighs the parameters of step tau by tau^gamma. Its relative width, sigma_rel in the paper, is the
standard deviation of that weight over t.
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
    """The average after step `step` = 1, 2 ..., from the average after the step before (eq. 8).

    beta = (1 - 1/t)^(gamma + 1), which is 0 at the first step.
    """
    t = step.astype(jnp.float32)
    gain = -jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / t))  # 1 - beta
    return jax.tree.map(lambda a, p: a + gain * (p - a), average, params)


def coefficients(
    steps: Sequence[int], widths: Sequence[float], *, step: int, width: float
) -> np.ndarray:
    """Weights of the averages at `steps` of `widths` that sum to the average at `step` of `width`.

    The sum is the nearest one, in least squares over training time (algorithm 3).
    """
    t, gamma = np.asarray(steps, float), np.array([exponent(x) for x in widths])
    target = np.full(1, float(step)), np.full(1, exponent(width))
    products = inner_products(t[:, None], gamma[:, None], t[None], gamma[None])
    with_target = inner_products(t[:, None], gamma[:, None], *target)[:, 0]
    return np.linalg.solve(products, with_target)


def inner_products(
    t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    """Integrals over time of the products of two weights (eq. 19).

    A weight is (gamma + 1) tau^gamma / t^(gamma + 1) up to its t, and 0 after it.
    """
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_of_last = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (first / last) ** gamma_of_last / last
