"""FID, sFID, Inception Score, precision and recall, as ADM's evaluator computes them.

Dhariwal and Nichol 2021. Everything is NumPy float64 on the host. Features come in batches; where a
metric needs only sums of them, only the sums are kept.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

Features = Float[np.ndarray, "_ d"]

SPLIT_SIZE = 5000  # images in a split of the Inception Score
NEIGHBOURS = 3  # the distance to the third nearest other feature is a feature's radius
_BLOCK = 1024  # rows and columns of distances at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """The mean and the unbiased covariance of features."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


class RunningMoments:
    """The mean and covariance of features that come in batches.

    Only differences from the first batch's mean are summed, so that a large common offset costs no
    digits.
    """

    def __init__(self) -> None:
        self.num = 0

    def add(self, features: Features) -> None:
        """Count a batch in."""
        x = features.astype(np.float64)
        if not self.num:
            self._offset = x.mean(axis=0)
            self._sum = np.zeros_like(self._offset)
            self._products = np.zeros((x.shape[1], x.shape[1]))
        x -= self._offset
        self.num += len(x)
        self._sum += x.sum(axis=0)
        self._products += x.T @ x

    def result(self) -> Moments:
        """The moments of all batches.

        Raises:
            ValueError: there were fewer than two features.
        """
        if self.num < 2:
            raise ValueError(f"a covariance takes two features or more, got {self.num}")
        mean = self._sum / self.num
        centred = self._products - self.num * np.outer(mean, mean)
        return Moments(self._offset + mean, centred / (self.num - 1))


class RunningInceptionScore:
    """exp(E KL(p(y|x) || p(y))), averaged over splits of `split_size`; the last may be smaller.

    Salimans et al. 2016, with ADM's splits. E KL = E sum p log p - sum q log q with q = E p: again
    only sums.
    """

    def __init__(self, split_size: int = SPLIT_SIZE):
        self._split_size = split_size
        self._scores: list[float] = []
        self.num = 0
        self._restart()

    def _restart(self) -> None:
        self._num, self._negative_entropy = 0, 0.0
        self._sum = np.zeros(())

    def add(self, probabilities: Features) -> None:
        """Count a batch [b k] of the probabilities of k classes in."""
        self.num += len(probabilities)
        while len(probabilities):
            space = self._split_size - self._num
            part = probabilities[:space].astype(np.float64)
            probabilities = probabilities[space:]
            self._num += len(part)
            self._sum = self._sum + part.sum(axis=0)
            self._negative_entropy += _xlogx(part).sum()
            if self._num == self._split_size:
                self._scores.append(self._score())
                self._restart()

    def _score(self) -> float:
        marginal = _xlogx(self._sum / self._num).sum()
        return float(np.exp(self._negative_entropy / self._num - marginal))

    def result(self) -> float:
        """The score of all batches."""
        rest = [self._score()] if self._num else []
        return float(np.mean(self._scores + rest))


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017); of Inception, the FID.

    The trace of the root is the sum of the roots of the eigenvalues of L' B L where A = L L', a
    symmetric problem. Others take `sqrtm` of A B: the same number where A B is regular, and noise
    where fewer images than features make it singular.
    """
    root = _factor(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(difference @ difference + traces - 2 * trace_of_root)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """The L of covariance = L L'."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # singular: fewer images than features
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.clip(values, 0, None))


def precision_recall(reference: Features, samples: Features) -> tuple[float, float]:
    """Precision and recall of samples (Kynkaanniemi et al. 2019).

    Precision is the share of samples within the reference's manifold, recall the share of the
    reference's features within the samples'. A manifold is the union of balls around its features,
    each of which reaches to the third nearest other feature. Both depend on how many features there
    are of each.

    Raises:
        ValueError: there are three features or fewer of either.
    """
    reference_radii, sample_radii = radii(reference), radii(samples)
    sample_inside = np.zeros(len(samples), bool)
    reference_inside = np.zeros(len(reference), bool)
    for rows, columns, distances in _squared_distances(reference, samples):
        inside = distances <= reference_radii[rows, None]
        sample_inside[columns] |= inside.any(axis=0)
        inside = distances <= sample_radii[columns]
        reference_inside[rows] |= inside.any(axis=1)
    return float(sample_inside.mean()), float(reference_inside.mean())


def radii(features: Features) -> Float64[np.ndarray, " _"]:
    """The squared distance of each feature to its third nearest other one.

    Raises:
        ValueError: there are three features or fewer.
    """
    if len(features) <= NEIGHBOURS:
        raise ValueError(
            f"precision and recall take {NEIGHBOURS + 1} images or more, got {len(features)}"
        )
    nearest = np.full((len(features), NEIGHBOURS + 1), np.inf)
    for rows, _, distances in _squared_distances(features, features):
        both = np.concatenate([nearest[rows], distances], axis=1)
        nearest[rows] = np.partition(both, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
    return nearest.max(axis=1)


def _squared_distances(
    a: Features, b: Features
) -> Iterator[tuple[slice, slice, Float64[np.ndarray, "_ _"]]]:
    """Blocks of |a_i - b_j|^2 with their rows and columns, as |a|^2 - 2 a b + |b|^2.

    The mean of `a` is subtracted from both first: it would cost digits.
    """
    centre = a.mean(axis=0, dtype=np.float64)
    for rows in _blocks(len(a)):
        x = a[rows].astype(np.float64) - centre
        for columns in _blocks(len(b)):
            y = b[columns].astype(np.float64) - centre
            squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
            yield rows, columns, np.maximum(squares - 2 * x @ y.T, 0)


def _blocks(num: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, num, _BLOCK))
