"""One server of the GCS protocol for all tests here, and a new bucket for each of them."""

import itertools

import pytest

from tests.bucket.storage import serving

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def storage():
    with serving() as running:
        yield running


@pytest.fixture
def bucket(storage, monkeypatch) -> str:
    """The address of an empty bucket, which this process and those that it starts can reach."""
    for name, value in storage.environment().items():
        monkeypatch.setenv(name, value)
    return storage.make_bucket(f"bucket-{next(NUMBERS)}")
