"""Every route with every form of credential; paths, methods, labels and words that try to be something else."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.hostile.wire import CALL, request, statuses, tell
from tests.running import ADMIN, KEY, config, running
from tests.scripted import plain, scripted

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
# (method, path, body, who may: a team | the operator | anybody)
ROUTES: list[tuple[str, str, dict[str, Any] | None, str]] = [
    ("POST", "/v1/chat/completions", CHAT, "team"),
    ("POST", "/v1/completions", {"model": "m", "prompt": "hi"}, "team"),
    ("POST", "/v1/embeddings", {"model": "m", "input": "hi"}, "team"),
    ("GET", "/v1/models", None, "team"),
    ("GET", "/v1/models/m", None, "team"),
    ("POST", "/v1/responses", {"model": "m", "input": "hi"}, "team"),
    ("GET", "/v1/files", None, "team"),
    ("DELETE", "/v1/files/file-1", None, "team"),
    ("GET", "/admin/v1/exchanges", None, "operator"),
    ("GET", "/admin/v1/openapi.json", None, "operator"),
    *(
        ("GET", f"/admin/v1/{path}", None, "operator")
        for path in ("organisations", "teams", "keys", "users", "budgets", "tokens", "audit", "audit/verify")
    ),
    ("GET", "/metrics", None, "operator"),
    ("GET", "/healthz", None, "anybody"),
    ("GET", "/readyz", None, "anybody"),
]
BEARER = "authorization"
CREDENTIALS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "empty bearer": [(BEARER, "Bearer")],
    "basic": [(BEARER, "Basic dGs6dGs=")],
    "no scheme": [(BEARER, KEY)],
    "wrong": [(BEARER, "Bearer wrong")],
    "prefix": [(BEARER, f"Bearer {KEY[:-1]}")],
    "longer": [(BEARER, f"Bearer {KEY}x")],
    "huge": [(BEARER, "Bearer " + "x" * 50_000)],
    "team": [(BEARER, f"Bearer {KEY}")],
    "team by x-api-key": [("x-api-key", KEY)],
    "team by api-key": [("api-key", KEY)],
    "operator": [(BEARER, f"Bearer {ADMIN}")],
    "two headers": [(BEARER, f"Bearer {KEY}"), ("x-api-key", KEY)],
    "two different": [(BEARER, f"Bearer {KEY}"), ("api-key", "wrong")],
    "one header twice": [(BEARER, f"Bearer {KEY}"), (BEARER, f"Bearer {KEY}")],
    "one header twice, different": [(BEARER, "Bearer wrong"), (BEARER, f"Bearer {KEY}")],
}


def expected(who: str, credential: str) -> tuple[int, ...]:
    if who == "anybody":
        return (200,)
    if who == "operator":
        return (200,) if credential == "operator" else (400, 401)
    if credential.startswith("team"):
        return (200,)
    return (400,) if credential.startswith(("two", "one header")) else (401,)


async def test_every_route_wants_its_key_in_one_place_and_says_so() -> None:
    async with scripted(plain) as up, running(config(up.url, server={"metrics_open": False})) as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as client:
            for method, path, body, who in ROUTES:
                for name, headers in CREDENTIALS.items():
                    sent = len(up.asked)
                    response = await client.request(method, path, json=body, headers=headers)
                    case = (method, path, name, response.status_code, response.text[:200])
                    assert response.status_code in expected(who, name), case
                    assert KEY not in response.text, case
                    assert ADMIN not in response.text, case
                    if response.status_code != 200:
                        assert len(up.asked) == sent, case
                    if response.status_code != 200 and path != "/metrics":
                        error = response.json()["error"]
                        assert error["type"] == "invalid_request_error", case
                        assert error["code"] in (
                            "missing_api_key",
                            "invalid_api_key",
                            "several_api_keys",
                            "admin_only",
                        ), case
        assert all(asked.headers["authorization"] == "Bearer sk-secret-of-the-provider" for asked in up.asked)
        assert not any(KEY in str(asked.headers) for asked in up.asked)


async def test_a_closed_admin_plane_tells_nobody_anything() -> None:
    async with scripted(plain) as up, running(config(up.url, server={"admin_key": None})) as gateway:
        for headers in ([], [(BEARER, f"Bearer {KEY}")], [(BEARER, "Bearer None")], [(BEARER, "Bearer")]):
            async with httpx2.AsyncClient(base_url=gateway.url) as client:
                for path in (
                    "/admin/v1/exchanges",
                    "/admin/v1/exchanges/req_1",
                    "/admin/v1/openapi.json",
                    "/admin/v1/keys",
                ):
                    response = await client.get(path, headers=headers)
                    assert (response.status_code, response.json()["error"]["code"]) == (403, "admin_only")


PATHS = [b"/", b"//v1/models", b"/v1", b"/V1/models", b"/v1//models", b"/v1/./models"]
PATHS += [b"/v1/../v1/models", b"/v1/%2e%2e/admin", b"/v1/%2e/models", b"/v1/models%00"]
PATHS += [b"/v1/..%2fadmin", b"/v1/x%2fy", b"/v1/..;/admin", b"/v1/\\..\\admin", b"/v1/a b"]
PATHS += [b"/v1/%ef%bc%8e%ef%bc%8e/admin", b"/v1/%252e%252e/admin", b"/v1/", b"/v1/files/"]
PATHS += [b"/v1/files//a", b"/v1/files/..", b"/v1/files/.", b"/v1/%0d%0ax-a:%20b", b"/admin/../v1/models"]
PATHS += [b"/healthz/", b"/healthz/x", b"/metrics/..", b"/.env", b"/v1/chat/completions/"]
PATHS += [b"/v1/chat/completions?\x7f", b"/v1/responses%3fa", b"/v1/files/%e0%80%af", b"/admin"]
PATHS += [b"/admin/v1", b"/admin/v1/", b"/admin/v1/nothing", b"/dashboard", b"/v1/files?" + b"a" * 9000]
PATHS += [b"/v2/models", b"/openapi.json", b"/docs"]
SERVED = (b"/v1/models?a=b", b"/v1/models/m", b"/v1/%6dodels", b"/v1/files/file-1?limit=2&after=a%20b")


async def test_a_path_that_is_not_served_is_404_with_and_without_a_key_and_never_sent_on() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for path in PATHS:
            for key, allowed in ((KEY, {400, 404}), ("wrong", {400, 401, 404})):
                found = await tell(gateway.url, request(b"", b"connection: close", method=b"GET", path=path, key=key))
                assert len(found) == 1, (path, found)
                assert found[0].status in allowed, (path, key, found)
                assert found[0].error["code"] in ("not_found", "invalid_request", "invalid_api_key", "admin_only"), (
                    path,
                    found,
                )
        assert not up.asked
        for path in SERVED:
            for key, status in ((KEY, 200), ("wrong", 401)):
                found = await tell(gateway.url, request(b"", b"connection: close", method=b"GET", path=path, key=key))
                assert statuses(found) == [status], path
        assert [asked.path for asked in up.asked] == ["/v1/files/file-1?limit=2&after=a%20b"]


async def test_a_method_that_is_not_served_is_405_and_never_sent_on() -> None:
    methods = {b"PROPFIND", b"TRACE", b"OPTIONS", b"SEARCH", b"PURGE", b"LINK", b"SUBSCRIBE", b"M-SEARCH", b"QUERY"}
    paths = {
        b"/v1/chat/completions",
        b"/v1/completions",
        b"/v1/embeddings",
        b"/v1/models",
        b"/v1/models/m",
        b"/v1/responses",
    }
    paths |= {b"/healthz", b"/readyz", b"/metrics"}
    closing = b"connection: close"
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for path in sorted(paths):
            more = {b"GET", b"PUT", b"DELETE", b"PATCH"} if path.endswith((b"completions", b"embeddings")) else set()
            more |= {b"POST", b"DELETE"} if path.startswith((b"/v1/models", b"/h", b"/r", b"/m")) else set()
            for method in sorted(methods | more):
                found = await tell(gateway.url, request(b"", closing, method=method, path=path))
                assert found[0].status in (400, 405), (method, path, found)
        assert not up.asked


WORDS = ["m\r\nx-evil: 1", "m\nlevel=ERROR", "m\0", "m\x1b[31m", "\u2028m", "m\x85", "' OR '1'='1"]
WORDS += ["m'; DROP TABLE records; --", 'm" --', '{"$gt": ""}', "*)(uid=*", "../../etc/passwd"]
WORDS += ["${jndi:ldap://x}", "{{7*7}}", "%s%n", "<script>", "a" * 256, "\U0001f600", "\u202em", "m/*"]
WORDS += ["-1 UNION SELECT key FROM keys"]


async def test_words_that_try_to_be_something_else_stay_words(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """As model, user, key and label: no header, no start of a log line, no SQL."""
    said = config("filled in", telemetry={"logs": {"access": True}})
    async with scripted(plain) as up:
        said["providers"]["up"]["base_url"] = up.url
        async with running(said) as gateway:
            for word in WORDS:
                response = await gateway.client.post("/v1/chat/completions", json=CHAT | {"model": word})
                assert response.status_code == 404, word
                error = response.json()["error"]
                assert (error["code"], error["param"]) == ("model_not_found", "model"), word
                assert error["message"].isprintable(), word
                response = await gateway.client.post("/v1/chat/completions", json=CHAT | {"user": word})
                assert response.status_code == 200, word
                assert not any("evil" in name or "evil" in value for name, value in response.headers.items()), word
                metadata = json.dumps({"_user": word, word: word}).encode()
                headers = {
                    b"x-portkey-metadata": metadata,
                    b"x-tags": word.encode("latin-1", "replace").translate(None, bytes(range(32))),
                }
                response = await gateway.client.post("/v1/chat/completions", json=CHAT, headers=list(headers.items()))
                assert response.status_code == 200, word
                if word.isascii() and word.isprintable():
                    assert (
                        await gateway.client.get("/v1/models", headers={BEARER: f"Bearer {word}"})
                    ).status_code == 401, word
                    listed = await gateway.client.get(
                        "/admin/v1/exchanges", params={"user": word}, headers={BEARER: f"Bearer {ADMIN}"}
                    )
                    assert listed.status_code == 200, word
            await gateway.finished(3 * len(WORDS))
            for x in gateway.seen:
                for text in (x.user, x.session, x.feature, *x.tags):
                    assert text.isprintable(), text
            listed = await gateway.client.get(
                "/admin/v1/exchanges", params={"limit": 1000}, headers={BEARER: f"Bearer {ADMIN}"}
            )
            assert len(listed.json()["data"]) >= 3 * len(WORDS)
            assert gateway.app.records is not None
            assert gateway.app.records.dropped == 0
        assert all("evil" not in str(asked.headers) for asked in up.asked)
    lines = capfdbinary.readouterr().out.splitlines()
    lines = [line for line in lines if line]
    assert len(lines) >= 3 * len(WORDS)
    for line in lines:
        assert line.startswith(b'{"timestamp":'), line
        assert not any(byte < 32 or byte == 127 for byte in line), line
        json.loads(line)


async def test_labels_that_cannot_be_read_label_nothing_and_break_nothing() -> None:
    junk = [
        b"\xff",
        b"{",
        b"[1]",
        b'{"a":1}',
        b'{"_user":"\xff"}',
        b"[" * 10_000,
        b'{"a":"\\ud800"}',
        b"\x80" * 300,
        b"",
    ]
    names = [
        b"x-portkey-metadata",
        b"x-session-id",
        b"x-user-id",
        b"x-tags",
        b"x-feature",
        b"helicone-property-x",
        b"x-litellm-tags",
    ]
    names += [b"traceparent", b"tracestate", b"baggage", b"accept", b"user-agent", b"idempotency-key"]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for name in names:
            for value in junk:
                found = await tell(gateway.url, request(CALL, name + b": " + value, b"connection: close"))
                assert statuses(found) == [200], (name, value[:20], found)
        assert up.asked


async def test_a_trace_context_that_makes_no_sense_starts_a_new_trace() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace, span = good.split("-")[1:3]
    junk = ["", "x", good[:-1], good + "-x", good.upper(), "ff" + good[2:], good.replace(trace, "0" * 32), "a" * 60_000]
    junk += [good.replace(span, "0" * 16), good.replace(trace, "g" * 32)]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for value in junk:
            assert (await gateway.chat(headers={"traceparent": value, "tracestate": "a=b," * 1000})).status_code == 200
            x = gateway.seen[-1]
            assert x.trace.parent_id == 0, value[:60]
        assert (await gateway.chat(headers={"traceparent": good})).status_code == 200
        assert gateway.seen[-1].trace.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
        wrong = await gateway.chat(headers={"traceparent": good, BEARER: "Bearer wrong"})
        assert wrong.status_code == 401
        assert gateway.seen[-1].trace.trace_id != 0x4BF92F3577B34DA6A3CE929D0E0E4736
        assert up.asked


async def test_headers_that_only_a_gateway_may_write_are_ignored_and_kept_here() -> None:
    forged = dict.fromkeys(("x-gw-team", "x-tollkeeper-team", "x-forwarded-user", "x-admin"), "root")
    forged |= dict.fromkeys(("x-forwarded-for", "x-real-ip", "forwarded"), "for=1.2.3.4")
    forged |= {"x-tollkeeper-attempt": "req_1.9", "x-request-id": "mine", "x-tollkeeper-cost-usd": "0"}
    forged |= {"cookie": "session=1", "proxy-authorization": "Basic x"}
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.chat(headers=forged)
        x = await gateway.finished()
        assert response.status_code == 200
        assert (x.caller.team, x.client) == ("checkout", "127.0.0.1")
        assert response.headers["x-request-id"] == x.id != "mine"
        sent = up.asked[0].headers
        assert sent.pop("x-tollkeeper-attempt") == f"{x.id}.1"
        assert not set(forged) & set(sent)
