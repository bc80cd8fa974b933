"""What attention maps say: softmax(q k^T / sqrt(f)), a distribution over tokens j for each i."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SINK_MARGIN = 3.0  # epsilon of arXiv 2510.15731, of masses whose mean is 1


def attention_map(
    q: Float[Array, "b l h f"], k: Float[Array, "b l h f"]
) -> Float[Array, "b h l l"]:
    """The map of each head, in float32."""
    q, k = (x.astype(jnp.float32) for x in (q, k))
    return jax.nn.softmax(jnp.einsum("bihf,bjhf->bhij", q, k) * q.shape[-1] ** -0.5, axis=-1)


def entropy(a: Float[Array, "*b i j"]) -> Float[Array, "*b"]:
    """The entropy of a row in nats, -sum_j a_ij log a_ij, averaged over rows: log l if uniform."""
    return jax.scipy.special.entr(a).sum(axis=-1).mean(axis=-1)


def incoming_mass(a: Float[Array, "*b i j"]) -> Float[Array, "*b j"]:
    """sum_i a_ij: what token j gets of all attention. Its mean is 1."""
    return a.sum(axis=-2)


def mass_within(a: Float[Array, "*b i j"], inside: Float[Array, "i j"]) -> Float[Array, "*b"]:
    """The share of attention on pairs for which `inside` is 1."""
    return (a * inside).sum(axis=(-2, -1)) / a.shape[-2]


def effective_field(a: Float[Array, "*b i j"], squares: Float[Array, "i j"]) -> Float[Array, "*b"]:
    """The root mean square distance that attention looks across, sqrt(mean_i sum_j a_ij d_ij^2)."""
    return jnp.sqrt(mass_within(a, squares))


def is_sink(mass: Float[Array, "*b j"]) -> Array:
    """Whether a token's incoming mass is above the mean of the others' by `SINK_MARGIN`."""
    num = mass.shape[-1]
    others = (mass.sum(axis=-1, keepdims=True) - mass) / max(num - 1, 1)
    return mass > others + SINK_MARGIN
