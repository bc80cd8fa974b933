"""Every metric against ADM's definition, written plainly in float64 with SciPy."""

import numpy as np
import pytest
import scipy.linalg

from diffussm_jax.evaluation.metrics import (
    Moments,
    RunningInceptionScore,
    RunningMoments,
    frechet_distance,
    precision_recall,
)
from tests.evaluation.adm import adm_precision_recall


def features(num, width, *, seed, offset=0.0):
    """Correlated features, as float32 as they come from a network."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(width, width)) / width**0.5
    x = rng.normal(size=(num, width)) @ mixing + 0.3 * rng.normal(size=width)
    return (x + offset).astype(np.float32)


def moments(x):
    running = RunningMoments()
    for start in range(0, len(x), 37):
        running.add(x[start : start + 37])
    return running.result()


def adm_frechet(x, y):
    (mu1, s1), (mu2, s2) = (
        (z.mean(axis=0), np.cov(z, rowvar=False))
        for z in (x.astype(np.float64), y.astype(np.float64))
    )
    root = scipy.linalg.sqrtm(s1 @ s2).real
    difference = mu1 - mu2
    return difference @ difference + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_streamed_moments_are_those_of_all_features(offset):
    x = features(500, 20, seed=1, offset=offset)
    streamed = moments(x)
    np.testing.assert_allclose(streamed.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    expected = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(streamed.covariance, expected, rtol=1e-7, atol=1e-9)


def test_frechet_distance_is_adms():
    x, y = features(500, 40, seed=1), features(300, 40, seed=2)
    distance = frechet_distance(moments(x), moments(y))
    assert distance == pytest.approx(adm_frechet(x, y), rel=1e-6)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_commuting_covariances_is_known_even_where_they_are_singular():
    """sum (sqrt a - sqrt b)^2 + |difference|^2, in a rotated basis."""
    a, b = np.array([4.0, 1, 0, 0]), np.array([1.0, 9, 2, 0])
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    pair = [Moments(mean, basis * x @ basis.T) for mean, x in ((np.zeros(4), a), (np.ones(4), b))]
    expected = ((a**0.5 - b**0.5) ** 2).sum() + 4
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*pair[::-1]) == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_adms():
    logits = 4 * features(230, 10, seed=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = []
    for part in (p[:100], p[100:200], p[200:]):
        part = part.astype(np.float64)
        kl = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        expected.append(np.exp(kl.sum(axis=1).mean()))
    score = RunningInceptionScore(split_size=100)
    for start in range(0, 230, 64):
        score.add(p[start : start + 64])
    assert score.result() == pytest.approx(np.mean(expected), rel=1e-10)


def test_inception_score_of_sure_and_unsure_classifiers():
    for probabilities, expected in ((np.eye(10), 10), (np.full((10, 10), 0.1), 1)):
        score = RunningInceptionScore()
        score.add(probabilities)
        assert score.result() == pytest.approx(expected)


@pytest.mark.parametrize("num", [(1500, 1100), (60, 40)])
def test_precision_and_recall_are_adms(num):
    """The larger case takes several blocks."""
    reference, samples = (
        features(n, 8, seed=seed, offset=5 + seed) * scale
        for n, seed, scale in zip(num, (1, 2), (1.0, 0.8))
    )
    samples = samples + reference.mean(axis=0) - samples.mean(axis=0)
    expected = adm_precision_recall(reference, samples)
    assert all(0.1 < x < 0.99 for x in expected)
    assert precision_recall(reference, samples) == pytest.approx(expected, abs=1e-4)


def test_precision_and_recall_of_the_same_and_of_far_images():
    x = features(50, 8, seed=1)
    assert precision_recall(x, x[::-1]) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_too_few_images():
    with pytest.raises(ValueError, match="4 images or more, got 3"):
        precision_recall(features(3, 2, seed=0), features(9, 2, seed=0))
    running = RunningMoments()
    running.add(features(1, 2, seed=0))
    with pytest.raises(ValueError, match="two features"):
        running.result()
