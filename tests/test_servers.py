"""The tests' own PostgreSQL starts wherever the tests do."""

from __future__ import annotations

import asyncio

import pytest

from tests import servers


def test_a_server_starts_from_a_place_that_its_user_may_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root in a home that is closed to others: PostgreSQL runs as nobody, from a copy."""
    monkeypatch.setattr(servers, "_may_read", lambda _: False)
    with servers.postgres() as server:
        assert server.binaries.is_relative_to(server.folder)
        asyncio.run(servers.until("the copy answers", server.url()))
