"""GET /healthz, /readyz and /metrics: what probes and scrapers are told."""

from __future__ import annotations

import asyncio

from tests.running import ADMIN, KEY, config, running
from tests.scripted import plain, scripted


async def test_probes_need_no_key_and_change_nothing() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
            for method, status in (("GET", 200), ("HEAD", 200), ("POST", 405), ("DELETE", 405), ("OPTIONS", 405)):
                response = await gateway.client.request(method, path, headers={"authorization": ""})
                assert response.status_code == status, (method, path)
                if method == "GET":
                    assert response.text == text
                    assert response.headers["cache-control"] == "no-store"
        assert not gateway.seen
        assert not up.asked


async def test_a_stopping_gateway_is_alive_and_not_ready() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        gateway.app.stopping = True
        ready = await gateway.client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "not ready: shutting down\n")
        assert (await gateway.client.get("/healthz")).status_code == 200


async def test_metrics_are_open_or_behind_the_admin_key() -> None:
    async with scripted(plain) as up:
        async with running(config(up.url)) as gateway:
            response = await gateway.client.get("/metrics", headers={"authorization": ""})
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/plain")
            assert "tollkeeper_in_flight" in response.text
        async with running(config(up.url, server={"metrics_open": False})) as gateway:
            for value, status in ((f"Bearer {ADMIN}", 200), (f"Bearer {KEY}", 401), ("Bearer", 401), (ADMIN[:-1], 401)):
                response = await gateway.client.get("/metrics", headers={"authorization": value})
                assert response.status_code == status, value
            assert (
                await gateway.client.post("/metrics", headers={"authorization": f"Bearer {ADMIN}"})
            ).status_code == 405


async def test_many_scrapers_at_once_cost_one_rendering() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        bodies = [
            response.content for response in await asyncio.gather(*(gateway.client.get("/metrics") for _ in range(20)))
        ]
        assert len(set(bodies)) == 1
        openmetrics = await gateway.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.text.endswith("# EOF\n")
