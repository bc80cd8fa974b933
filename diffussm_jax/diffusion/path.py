"""A point of the path x = alpha x0 + sigma eps from an image to noise, and predictions made there.

The velocity is v = alpha' x0 + sigma' eps. DDPM's path is an arc, alpha^2 + sigma^2 = 1, with
(alpha', sigma') = (-sigma, alpha) as Salimans & Ho 2022 define v; a flow's is straight, with
(-1, 1). On both, alpha sigma' - alpha' sigma = 1.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.shapes import Images

Prediction = Literal["eps", "v", "x0"]
Coefficient = Float[Array, "b 1 1 1"]


class Point(NamedTuple):
    """The coefficients of each example, and their derivatives along the path."""

    alpha: Coefficient
    sigma: Coefficient
    d_alpha: Coefficient
    d_sigma: Coefficient

    def mix(self, x0: Images, eps: Images) -> Images:
        """The noised images."""
        return self.alpha * x0 + self.sigma * eps

    def target(self, prediction: Prediction, x0: Images, eps: Images) -> Images:
        """What the network is to predict."""
        velocity = self.d_alpha * x0 + self.d_sigma * eps
        return {"eps": eps, "v": velocity, "x0": x0}[prediction]

    def x0(self, prediction: Prediction, predicted: Images, x_t: Images) -> Images:
        """The clean images, of what the network predicted."""
        if prediction == "eps":
            return (x_t - self.sigma * predicted) / self.alpha
        if prediction == "v":
            return self.d_sigma * x_t - self.sigma * predicted
        return predicted

    def weight(self, config: DiffusionConfig) -> Float[Array, " b"] | float:
        """Min-SNR's weight of a squared error (Hang et al. 2023, section 3.4); 1 without it.

        In terms of the error of x0 it is min(SNR, gamma) for every prediction.
        """
        if config.weighting != "min_snr":
            return 1.0
        snr = jnp.square(self.alpha / jnp.maximum(self.sigma, 1e-6))
        errors = {"eps": 1 / snr, "v": jnp.square(self.sigma), "x0": jnp.ones_like(snr)}
        x0_error = errors[config.prediction]
        return (jnp.minimum(snr, config.min_snr_gamma) * x0_error)[:, 0, 0, 0]
