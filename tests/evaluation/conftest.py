"""A run that can be scored, and other people's images."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def scored_values(tiny_config) -> dict:
    """A tiny run's values, with features of pixels and few images."""
    evaluate = {"features": "pixels", "reference_images": 200, "batch_size": 100}
    return tiny_config | {"evaluate": evaluate}


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as uint8 [n 8 8 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[..., None], data.target
