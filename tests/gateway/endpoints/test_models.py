"""GET /v1/models: what a team may use, and nothing of the rest."""

from __future__ import annotations

from tests.running import KEY, config, running
from tests.scripted import plain, scripted

MORE = {
    "models": {"n/2": {"targets": [{"provider": "up", "model": "n"}], "aliases": ["latest"]}},
    "teams": {"small": {"keys": [{"name": "k", "key": "tk-small"}], "models": ["n/2"]}},
}


async def test_each_team_sees_its_own_models() -> None:
    async with scripted(plain) as up, running(config(up.url, **MORE)) as gateway:
        for key, names in ((KEY, ["m", "n/2"]), ("tk-small", ["n/2"])):
            headers = {"authorization": f"Bearer {key}"}
            listed = (await gateway.client.get("/v1/models", headers=headers)).json()
            assert listed["object"] == "list"
            assert [card["id"] for card in listed["data"]] == names
            for name, status in (
                ("m", 200 if "m" in names else 404),
                ("n/2", 200),
                ("n%2f2", 200),
                ("latest", 200),
                ("nothing", 404),
            ):
                response = await gateway.client.get(f"/v1/models/{name}", headers=headers)
                assert response.status_code == status, (key, name)
                if status == 404:
                    assert response.json()["error"]["code"] == "model_not_found"
                    assert response.json()["error"]["param"] == "model"
        assert not up.asked


async def test_a_head_has_no_body_and_a_post_is_refused() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        head = await gateway.client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")
        missing = await gateway.client.head("/v1/models/nothing")
        assert (missing.status_code, missing.content) == (404, b"")
        post = await gateway.client.post("/v1/models", json={})
        assert (post.status_code, post.json()["error"]["code"]) == (405, "method_not_allowed")
        assert not up.asked


async def test_a_model_of_any_length_is_told_and_noted_in_short() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.client.get("/v1/models/" + "a" * 15_000)
        x = await gateway.finished()
        assert response.status_code == 404
        assert len(response.json()["error"]["message"]) < 300
        assert len(x.model) == 256
        assert not up.asked
