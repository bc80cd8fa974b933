"""A hub on loopback, and what starts processes that speak with it."""

import pytest

from tests.hub.client import Client
from tests.hub.hub_server import serving


@pytest.fixture
def hub():
    with serving() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path)
