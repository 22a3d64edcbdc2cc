"""Every other /v1/* path: passed on untouched, to a provider that the operator chose."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.endpoints.relay import Parts
from tests.hostile.wire import chunked, request, statuses, tell
from tests.running import config, running
from tests.scripted import Asked, plain, scripted

FORM = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n%s\r\n%s\r\n'
END = b"--b--\r\n"


async def echo(asked: Asked) -> None:
    await asked.wire.whole(
        200, asked.body, asked.headers.get("content-type", "text/plain"), x_ratelimit_left="7", x_inner="secret"
    )


async def test_bytes_pass_both_ways_as_they_are_whatever_they_are() -> None:
    body = bytes(range(256)) * 1000
    async with scripted(echo) as up, running(config(up.url)) as gateway:
        for method in ("POST", "PUT", "PATCH"):
            response = await gateway.client.request(
                method,
                "/v1/files?purpose=a%20b&x=1",
                content=body,
                headers={"content-type": "application/octet-stream"},
            )
            assert response.status_code == 200
            assert response.content == body
            assert response.headers["content-type"] == "application/octet-stream"
            assert response.headers["x-ratelimit-left"] == "7"
            assert "x-inner" not in response.headers
            assert up.asked[-1].method == method
            assert up.asked[-1].path == "/v1/files?purpose=a%20b&x=1"
            assert up.asked[-1].headers["content-length"] == str(len(body))
        piece = request(chunked(body, 9999), b"transfer-encoding: chunked", path=b"/v1/files")
        assert statuses(await tell(gateway.url, piece)) == [200]
        assert up.asked[-1].body == body


async def test_a_models_provider_is_chosen_by_json_and_by_form() -> None:
    more: dict[str, Any] = {
        "providers": {"other": {"base_url": "filled in"}},
        "models": {"n": {"targets": [{"provider": "other", "model": "served-n"}]}},
        "teams": {"checkout": {"provider": "up"}},
    }
    async with scripted(echo) as up, scripted(echo) as other:
        more["providers"]["other"]["base_url"] = other.url
        async with running(config(up.url, **more)) as gateway:
            await gateway.client.post("/v1/responses", json={"model": "n", "input": "hi"})
            assert other.asked[-1].json == {"model": "served-n", "input": "hi"}
            form = FORM % (b"model", b"", b"n") + FORM % (b"file", b"Content-Type: audio/wav\r\n", b"\0\1") + END
            kind = {"content-type": "multipart/form-data; boundary=b"}
            response = await gateway.client.post("/v1/audio/transcriptions", content=form, headers=kind)
            assert response.status_code == 200
            assert other.asked[-1].body == form.replace(b"\r\nn\r\n", b"\r\nserved-n\r\n")
            assert not up.asked
            await gateway.client.get("/v1/batches")
            assert up.asked[-1].path == "/v1/batches"


async def test_a_model_that_is_not_served_is_refused_by_name_and_noted_in_short() -> None:
    name = "a" * 100_000
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.client.post("/v1/responses", json={"model": name})
        x = await gateway.finished()
        assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
        assert len(response.json()["error"]["message"]) < 300
        assert len(x.model) == 256
        form = FORM % (b"model", b"", b"un\xffknown") + END
        kind = {"content-type": "multipart/form-data; boundary=b"}
        response = await gateway.client.post("/v1/audio/transcriptions", content=form, headers=kind)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert not up.asked


async def test_a_call_that_names_no_model_needs_a_provider() -> None:
    more: dict[str, Any] = {"providers": {"other": {"base_url": "http://127.0.0.1:9"}}}
    async with scripted(plain) as up, running(config(up.url, **more)) as gateway:
        for call in ({"input": "hi"}, {"model": None}):
            response = await gateway.client.post("/v1/responses", json=call)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "provider_required")
            assert "teams.checkout.provider" in response.json()["error"]["message"]
        assert not up.asked


async def test_a_json_body_is_checked_before_it_is_passed_on() -> None:
    bodies = [b"{", b"[]", b'{"model":1}', b'{"model":"m","model":"m"}', b'{"model":"m","mod\\u0065l":"x"}']
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for body in bodies:
            response = await gateway.client.post(
                "/v1/responses", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == 400, body
            assert response.json()["error"]["code"] in ("invalid_json", "invalid_type", "duplicate_field"), body
        assert not up.asked


async def test_an_odd_method_is_refused() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for method in ("OPTIONS", "TRACE", "PROPFIND"):
            response = await gateway.client.request(method, "/v1/files")
            assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed"), method
        assert not up.asked


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


FILE = part("file", b"x" * 200_000, '; filename="a"')
FORMS = {
    "twice": part("model", b"m") + part("model", b"other"),
    "twice, far apart": part("model", b"m") + FILE + part("model", b"other"),
    "behind a large part": FILE + part("model", b"m"),
    "unquoted": part("model", b"m").replace(b'"model"', b"model") + FILE,
    "in another case": part("model", b"m") + part("x", b"y").replace(b'name="x"', b'NAME="model"'),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_form_whose_model_could_be_read_otherwise_is_refused(name: str) -> None:
    body = FORMS[name] + b"--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    async with scripted(echo) as up, running(config(up.url)) as gateway:
        response = await gateway.client.post("/v1/audio/transcriptions", content=body, headers=kind)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"


async def test_the_word_model_inside_a_file_is_only_a_word() -> None:
    inside = b'a line\r\nContent-Disposition: form-data; name="model"\r\n\r\nno part of this form' + b"x" * 100_000
    body = part("model", b"m") + part("file", inside * 3, '; filename="a"') + b"--b--\r\n"
    kind = {"content-type": 'multipart/form-data; boundary="b"'}
    async with scripted(echo) as up, running(config(up.url)) as gateway:
        response = await gateway.client.post("/v1/audio/transcriptions", content=body, headers=kind)
        assert response.status_code == 200
        assert up.asked[0].body == body.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nup\r\n", 1)


def test_parts_are_counted_however_the_form_is_cut() -> None:
    body = FORMS["twice"] + b"--b--\r\n"
    for size in (1, 2, 7, 50, 10_000):
        parts = Parts(b"multipart/form-data; boundary=b")
        for i in range(0, len(body), size):
            parts.feed(body[i : i + size])
        assert parts.models == 2, size
