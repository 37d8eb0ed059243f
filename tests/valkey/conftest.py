"""The servers that tests of the tier run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scrubjay.testing.servers import Flavour, ValkeyServer

FLAVOURS = ["valkey", "redis8", pytest.param("redis7", marks=pytest.mark.system)]


@pytest.fixture(scope="module", params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """One for a module, of each make."""
    flavour: Flavour = request.param
    with ValkeyServer(flavour) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """One for a single test."""
    with ValkeyServer() as running:
        yield running
