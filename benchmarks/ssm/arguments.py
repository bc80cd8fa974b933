"""Inputs and parameters, as a model starts with them, for the benchmarks of the operator."""

from typing import NamedTuple

import numpy as np

NUM_PAIRS = 32  # of poles: N = 64


class Raw(NamedTuple):
    """The input of a layer, and the parameters that it learns for both directions."""

    u: np.ndarray  # b l d
    log_dt: np.ndarray  # 2 d
    log_neg_a_re: np.ndarray  # 2 d n
    a_im: np.ndarray  # 2 d n
    b: np.ndarray  # 2 d n 2
    c: np.ndarray  # 2 d n 2
    skip: np.ndarray  # 2 d


def make(batch: int, l: int, d: int) -> Raw:
    """Make the arrays of S4D-Lin in float32.

    A = -1/2 + i pi n, B = 1, dt log-uniform in [1e-3, 1e-1], and C, D and u normal.
    """
    rng = np.random.default_rng(0)
    log_dt = rng.uniform(np.log(1e-3), np.log(1e-1), (2, d))
    a_im = np.tile(np.pi * np.arange(NUM_PAIRS), (2, d, 1))
    b = np.stack([np.ones_like(a_im), np.zeros_like(a_im)], axis=-1)
    c = rng.normal(size=(2, d, NUM_PAIRS, 2)) / np.sqrt(2)
    u = rng.normal(size=(batch, l, d))
    skip = rng.normal(size=(2, d))
    raw = Raw(u, log_dt, np.full_like(a_im, np.log(0.5)), a_im, b, c, skip)
    return Raw(*(x.astype(np.float32) for x in raw))
