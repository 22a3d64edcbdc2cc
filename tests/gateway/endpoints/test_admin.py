"""The admin plane over real sockets: who may ask, what is answered, and that bad questions are told what is bad."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import httpx2
import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from gateway.endpoints.admin import PARAMETERS, Admin, read_query
from gateway.errors import CODES, BadCall
from gateway.openapi import documented
from gateway.plane import Door
from gateway.store import Fault, Query, Record, write_time
from gateway.store.sqlite import SqliteRecordStore

KEY = "admin-key-of-the-test"
LIST = "/admin/v1/exchanges"
NOW = 1_763_690_400_000_000_000
HOSTILE = [
    "' OR '1'='1",
    "x'; DROP TABLE exchange; --",
    '" OR ""="',
    "%",
    "_",
    "\\",
    "\x00",
    "💥' --",
    "?1",
    "NULL",
    "1e3",
    "-1",
]


def record(number: int, **said: Any) -> Record:
    facts = {
        "id": f"req_{number:032x}",
        "at": write_time(NOW + number),
        "team": "checkout",
        "key": "web",
        "endpoint": "chat",
        "operation": "chat",
        "method": "POST",
        "path": "/v1/chat/completions",
        "route": "/v1/chat/completions",
        "model": "gpt",
        "stream": False,
        "client": "10.0.0.1",
        "session": "",
        "user": "",
        "feature": "",
        "tags": ["a"],
        "trace_id": "0" * 32,
        "status": 200,
        "error": None,
        "cache": "",
        "decisions": [],
        "attempts": [],
        "timings": {"total_us": 10, "overhead_us": 1, "first_byte_us": 9, "upstream_us": 8},
        "tokens": {},
        "cost_nano": 1500,
        "cost_usd": "0.0000015",
        "sent_bytes": 99,
    }
    return msgspec.convert(facts | said, Record)


Serving = Callable[[Admin, str | None], httpx2.AsyncClient]


class Front:
    """One real server for the whole file; behind it, the app of the test that runs."""

    app: Starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


FRONT = Front()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(FRONT, log_level="error", lifespan="off"))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    running.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    running.join()


@pytest.fixture
def serving(address: str) -> Serving:
    def serve(admin: Admin, key: str | None) -> httpx2.AsyncClient:
        FRONT.app = Starlette(routes=Door(key).routes(documented(admin.operations())))
        return httpx2.AsyncClient(base_url=address, trust_env=False, timeout=20)

    return serve


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteRecordStore]:
    opened = SqliteRecordStore(tmp_path / "records.db")
    yield opened
    await opened.aclose()


@pytest.fixture
async def client(store: SqliteRecordStore, serving: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(Admin(store), KEY) as opened:
        opened.headers["authorization"] = f"Bearer {KEY}"
        yield opened


def error(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["code"] in CODES
    return body["error"]


@pytest.mark.parametrize("path", [LIST, LIST + "/req_1", "/admin/v1/openapi.json", LIST + "?nonsense=1"])
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "admin_only"),
        ({"authorization": "Bearer wrong"}, 401, "admin_only"),
        ({"authorization": f"Basic {KEY}"}, 401, "admin_only"),
        ({"authorization": "Bearer"}, 401, "admin_only"),
        ({"x-api-key": ""}, 401, "admin_only"),
        ({"x-api-key": KEY + "x"}, 401, "admin_only"),
        ({"x-api-key": KEY, "authorization": f"Bearer {KEY}"}, 400, "several_api_keys"),
    ],
)
async def test_without_the_admin_key_nothing_is_told(
    store: SqliteRecordStore, serving: Serving, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    store.write([record(1)])
    async with serving(Admin(store), KEY) as client:
        answer = await client.get(path, headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (status, code)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert KEY not in answer.text


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}]
)
async def test_the_admin_key_opens_in_either_header(
    store: SqliteRecordStore, serving: Serving, headers: dict[str, str]
) -> None:
    async with serving(Admin(store), KEY) as client:
        assert (await client.get(LIST, headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"x-api-key": "None"}, {"authorization": "Bearer None"}])
async def test_with_no_admin_key_configured_the_plane_is_closed_to_everybody(
    store: SqliteRecordStore, serving: Serving, headers: dict[str, str]
) -> None:
    async with serving(Admin(store), None) as client:
        answer = await client.get(LIST, headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (403, "admin_only")
    assert "server.admin_key" in answer.text


async def test_a_record_is_answered_whole(client: httpx2.AsyncClient, store: SqliteRecordStore) -> None:
    told = record(7, content={"input": "a", "output": "b"})
    store.write([told])
    answer = await client.get(f"{LIST}/{told.id}")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json() == msgspec.json.decode(msgspec.json.encode(told))
    head = await client.head(f"{LIST}/{told.id}")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))


@pytest.mark.parametrize("id", ["req_none", *HOSTILE])
async def test_an_unknown_id_is_not_found(client: httpx2.AsyncClient, store: SqliteRecordStore, id: str) -> None:
    store.write([record(1)])
    answer = await client.get(f"{LIST}/{quote(id, safe='')}")
    assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
    assert len((await client.get(LIST)).json()["data"]) == 1


async def test_other_methods_are_refused(client: httpx2.AsyncClient) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH", "OPTIONS"):
        answer = await client.request(method, LIST)
        assert (answer.status_code, error(answer)["code"], answer.headers["allow"]) == (
            405,
            "method_not_allowed",
            "GET, HEAD",
        )


async def test_ten_thousand_records_are_paged_exactly_once_newest_first_while_more_arrive(
    client: httpx2.AsyncClient, store: SqliteRecordStore
) -> None:
    for start in range(0, 10_000, 500):
        store.write([record(n) for n in range(start, start + 500)])
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await client.get(LIST, params={"limit": 999} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [line["id"] for line in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
        store.write([record(20_000 + len(seen))])
    assert seen == [f"req_{n:032x}" for n in range(9_999, -1, -1)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("team=b", [4, 3]),
        ("model=m1&team=b", [4, 3]),
        ("session=s%201", [1]),
        ("user=u", [1]),
        ("code=overloaded", [4]),
        ("status=200", [5, 3, 1]),
        ("status=4xx", [2]),
        ("status=5xx", [4]),
        ("status=error", [4, 3, 2]),
        ("status=error&team=b&model=m1&limit=1", [4]),
        ("since=2025-11-21T02:00:00.000000003Z", [5, 4, 3]),
        ("since=2025-11-21T03:00:00.000000003%2B01:00&until=2025-11-21T02:00:00.000000005Z", [4, 3]),
        ("team=nobody", []),
    ],
)
async def test_filters_narrow_the_list(
    client: httpx2.AsyncClient, store: SqliteRecordStore, asked: str, found: list[int]
) -> None:
    store.write(
        [
            record(1, team="a", model="m1", session="s 1", user="u"),
            record(2, team="a", model="m2", status=404, error={"code": "not_found", "message": "m"}),
            record(3, team="b", model="m1", error={"code": "upstream_broke_off", "message": "m"}),
            record(4, team="b", model="m1", status=503, error={"code": "overloaded", "message": "m"}),
            record(5, team="c", model="m3"),
        ]
    )
    answer = await client.get(f"{LIST}?{asked}")
    assert answer.status_code == 200
    assert [int(line["id"][4:], 16) for line in answer.json()["data"]] == found


@pytest.mark.parametrize(
    ("ago", "found"), [("15m", [1]), ("900s", [1]), ("2h", [2, 1]), ("7d", [3, 2, 1]), ("999999d", [4, 3, 2, 1])]
)
async def test_since_may_be_said_as_so_long_ago(
    client: httpx2.AsyncClient, store: SqliteRecordStore, ago: str, found: list[int]
) -> None:
    minutes = {1: 5, 2: 60, 3: 24 * 60, 4: 30 * 24 * 60}
    store.write([record(n, at=write_time(time.time_ns() - m * 60 * 10**9)) for n, m in minutes.items()])
    lines = (await client.get(LIST, params={"since": ago})).json()["data"]
    assert sorted((int(line["id"][4:], 16) for line in lines), reverse=True) == found


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ("status=600", "status"),
        ("status=4x", "status"),
        ("status=%D9%A4xx", "status"),
        ("since=yesterday", "since"),
        ("since=15w", "since"),
        ("since=2025-11-21T02:00:00", "since"),
        ("until=2025-11-21T02:00:00+00:00", "until"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=%D9%A1", "limit"),
        ("cursor=x", "cursor"),
        ("team=", "team"),
        ("team=a&team=b", "team"),
        ("team=" + "a" * 513, "team"),
        ("tema=a", "tema"),
        ("team=%FF", None),
        ("&".join(f"a{n}=1" for n in range(40)), None),
    ],
)
async def test_a_bad_parameter_is_named(client: httpx2.AsyncClient, asked: str, param: str | None) -> None:
    answer = await client.get(f"{LIST}?{asked}")
    told = error(answer)
    assert (answer.status_code, told["param"]) == (400, param)
    assert param is None or param in told["message"]


@pytest.mark.parametrize("words", HOSTILE)
async def test_words_of_sql_are_harmless_in_every_parameter(
    client: httpx2.AsyncClient, store: SqliteRecordStore, words: str
) -> None:
    store.write([record(1), record(2, team=words, model=words, session=words, user=words, error=Fault(words, "m"))])
    for parameter in PARAMETERS:
        answer = await client.get(LIST, params={parameter.name: words})
        if parameter.name in ("team", "model", "session", "user", "code"):
            assert [line["id"] for line in answer.json()["data"]] == [record(2).id]
        else:
            assert (answer.status_code, error(answer)["param"]) == (400, parameter.name)
    assert len((await client.get(LIST)).json()["data"]) == 2


async def test_the_flush_comes_before_each_read(store: SqliteRecordStore, serving: Serving) -> None:
    waiting = [record(n) for n in range(3)]

    async def flush() -> None:
        if waiting:
            store.write([waiting.pop()])

    async with serving(Admin(store, flush), KEY) as client:
        client.headers["x-api-key"] = KEY
        assert (await client.get(f"{LIST}/{record(2).id}")).status_code == 200
        assert len((await client.get(LIST)).json()["data"]) == 2


async def test_records_that_cannot_be_read_are_unavailable_with_retry_after(
    client: httpx2.AsyncClient, store: SqliteRecordStore
) -> None:
    store._write.execute("ALTER TABLE exchange RENAME TO gone")
    answer = await client.get(LIST)
    assert (answer.status_code, error(answer)["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")


async def test_readers_are_answered_while_another_process_writes(
    client: httpx2.AsyncClient, store: SqliteRecordStore
) -> None:
    store.write([record(1)])
    other = apsw.Connection(store.path)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM exchange")
    answers = await asyncio.gather(*(client.get(f"{LIST}/{record(1).id}") for _ in range(20)))
    other.execute("ROLLBACK")
    other.close()
    assert [answer.status_code for answer in answers] == [200] * 20


async def test_the_openapi_document_describes_each_route_parameter_and_field(
    client: httpx2.AsyncClient, store: SqliteRecordStore
) -> None:
    document = (await client.get("/admin/v1/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert sorted(document["paths"]) == sorted(operation.path for operation in documented(Admin(store).operations()))
    listing = document["paths"][LIST]["get"]
    named = {parameter["name"] for parameter in listing["parameters"]}
    elsewhere = {"failed", "teams", "codes", "key", "feature"}  # `status`, the operator, and refusals say these
    assert named == set(Query.__dataclass_fields__) - elsewhere
    for parameter in listing["parameters"]:
        if "example" in parameter:  # each example is understood
            read_query(f"{parameter['name']}={quote(str(parameter['example']))}".encode(), NOW)
    schemas = document["components"]["schemas"]
    assert set(schemas["Record"]["properties"]) == set(Record.__struct_fields__)
    references = set(_references(document))
    assert {r.removeprefix("#/components/schemas/") for r in references} <= set(schemas)
    assert "#/components/schemas/Record" in references


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in _references(value)]
    return [ref for value in node for ref in _references(value)] if isinstance(node, list) else []


def test_a_bad_name_is_not_repeated_at_length() -> None:
    with pytest.raises(BadCall) as raised:
        read_query(b"a" * 5000 + b"=1", NOW)
    assert len(json.dumps(raised.value.message)) < 300
