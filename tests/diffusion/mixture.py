"""A mixture of Gaussians in the plane, whose perfect denoisers are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (1, 1, 2)

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([[-0.8, 0.2], [0.5, 0.6], [0.3, -0.7]])
COVARIANCES = np.array(
    [[[0.04, 0.02], [0.02, 0.04]], [[0.01, -0.01], [-0.01, 0.05]], [[0.02, 0], [0, 0.01]]]
)


def keys(num, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(num))


def posterior_mean(x_t, alpha, sigma):
    """E[x0 | x_t = alpha x0 + sigma eps], by Bayes' rule over the components."""
    covariances = alpha**2 * COVARIANCES + sigma**2 * jnp.eye(2)
    from_mean = x_t.reshape(-1, 1, 2) - alpha * MEANS  # b k 2
    whitened = jnp.einsum("kij,bkj->bki", jnp.linalg.inv(covariances), from_mean)
    log_odds = jnp.log(WEIGHTS) - 0.5 * (
        jnp.log(jnp.linalg.det(covariances)) + (from_mean * whitened).sum(-1)
    )
    odds = jax.nn.softmax(log_odds)
    posteriors = MEANS + alpha * jnp.einsum("kij,bkj->bki", COVARIANCES, whitened)
    return jnp.einsum("bk,bki->bi", odds, posteriors).reshape(x_t.shape)


def moments():
    mean = WEIGHTS @ MEANS
    offsets = MEANS - mean
    outer = np.einsum("ki,kj->kij", offsets, offsets)
    return mean, np.einsum("k,kij->ij", WEIGHTS, COVARIANCES + outer)


def assert_has_moments(x):
    """Assert that samples [b 2] have mean and covariance within three standard errors."""
    mean, covariance = moments()
    error = np.sqrt(np.diag(covariance) / len(x))
    assert np.all(np.abs(x.mean(axis=0) - mean) < 3 * error)
    centred = x - x.mean(axis=0)
    products = np.einsum("bi,bj->bij", centred, centred)
    error = products.std(axis=0) / np.sqrt(len(x))
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 3 * error)
