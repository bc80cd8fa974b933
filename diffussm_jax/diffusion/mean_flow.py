"""Mean flows: the average velocity of a flow over an interval, which draws images in one call.

Of Geng et al. 2025 (MeanFlow, arXiv 2505.13447). On the path of `flow`, the network learns
u(x_t, r, t), the average of the velocity over [r, t], so that x_r = x_t - (t - r) u(x_t, r, t). By
the derivative of this along the path,

    v = u + (t - r) du/dt,    du/dt = v d u/d x_t + d u/d t    at fixed r  (MeanFlow, eq. 6 to 8)

which holds for no network but the right one. du/dt is one Jacobian-vector product. The S4D operator
is linear in its input and its filters depend on neither x_t nor t, so that its product is the same
kernel run on the tangent (docs/decisions/0022-the-jvp-is-the-operator-on-the-tangent.md).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffussm_jax.config import DiffusionConfig
from diffussm_jax.diffusion.flow import TIME_SCALE, point
from diffussm_jax.diffusion.process import (
    Denoiser,
    NoisedBatch,
    PerExample,
    adaptive,
    draw_unit_time,
    mean_square,
)
from diffussm_jax.shapes import Images, Labels


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """A mean flow; a `Process`, whose times are pairs (t, r) with r <= t.

    Attributes:
        config: how times are drawn and losses weighted.
    """

    config: DiffusionConfig

    def draw_time(self, key: Key[Array, ""]) -> Array:
        """Draw (t, r): the later and the earlier of two times, or with r = t."""
        first, second, share = jax.random.split(key, 3)
        times = draw_unit_time(self.config, first), draw_unit_time(self.config, second)
        t, r = jnp.maximum(*times), jnp.minimum(*times)
        is_average = jax.random.bernoulli(share, self.config.share_r_below_t)
        return jnp.stack([t, jnp.where(is_average, r, t)])

    def x_t(self, x0: Images, t: Float[Array, "b 2"], eps: Images) -> Images:
        """x_t = (1 - t) x0 + t eps."""
        return point(t[:, 0]).mix(x0, eps)

    def conditions(self, t: Float[Array, "b 2"]) -> Float[Array, "b 2"]:
        """(t, 0), in the network's unit: an interval of no length, where u is the velocity."""
        return _told(t[:, 0], t[:, 0])

    def noise_level(self, conditions: Float[Array, "b 2"]) -> PerExample:
        """t / (1 - t)."""
        t = conditions[:, 0] / TIME_SCALE
        return t / (1 - t)

    def losses(
        self, model: Denoiser, batch: NoisedBatch, correction: Images | None = None
    ) -> dict[str, PerExample]:
        """The squared error of the identity for v = eps - x0, `mse`, and the weighted `loss`.

        It is MeanFlow's loss (eq. 9 to 11), written as an error of v as in iMF (Geng et al. 2025b,
        arXiv 2512.02012). No gradient goes through du/dt.
        """
        t, r = batch.t[:, 0], batch.t[:, 1]
        velocity = batch.eps - batch.x0
        velocity = velocity if correction is None else velocity + correction
        u, du_dt = self._average_and_derivative(model, batch, velocity)
        interval = (t - r)[:, None, None, None]
        mse = mean_square(u + interval * jax.lax.stop_gradient(du_dt) - velocity)
        return {"loss": adaptive(self.config, mse), "mse": mse}

    def _average_and_derivative(
        self, model: Denoiser, batch: NoisedBatch, velocity: Images
    ) -> tuple[Images, Images]:
        t, r = batch.t[:, 0], batch.t[:, 1]

        def u(x_t: Images, t: Float[Array, " b"]) -> Images:
            return model(x_t, _told(t, r), batch.y)

        x_t = self.x_t(batch.x0, batch.t, batch.eps)
        return jax.jvp(u, (x_t, t), (velocity, jnp.ones_like(t)))

    def velocity(
        self,
        model: Denoiser,
        x_t: Images,
        t: Float[Array, " b"],
        s: Float[Array, " b"],
        y: Labels | None,
    ) -> Images:
        """Run the model once: the average velocity over [s, t]."""
        return model(x_t, _told(t, s), y)


def _told(t: Float[Array, " b"], r: Float[Array, " b"]) -> Float[Array, "b 2"]:
    return TIME_SCALE * jnp.stack([t, t - r], axis=-1)
