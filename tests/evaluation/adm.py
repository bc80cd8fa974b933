"""Precision and recall as ADM defines them, written plainly."""

import numpy as np
import scipy.spatial.distance


def adm_precision_recall(reference, samples):
    def distances(a, b):
        return scipy.spatial.distance.cdist(
            a.astype(np.float64), b.astype(np.float64), "sqeuclidean"
        )

    def radii(a):
        return np.sort(distances(a, a), axis=1)[:, 3]

    between = distances(reference, samples)
    precision = (between <= radii(reference)[:, None]).any(axis=0).mean()
    recall = (between <= radii(samples)[None]).any(axis=1).mean()
    return precision, recall
