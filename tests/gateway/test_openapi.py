"""The OpenAPI document is made of what checks and answers, and describes every operation that is served."""

from __future__ import annotations

from typing import Any

from gateway.openapi import describe, documented
from tests.running import config, running
from tests.scripted import plain, scripted


async def test_every_operation_is_described_and_answers() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        document = (await gateway.admin("GET", "/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        ids = [told["operationId"] for path in document["paths"].values() for told in path.values()]
        assert len(ids) == len(set(ids)) > 30
        schemas = document["components"]["schemas"]
        assert set(references(document)) <= {f"#/components/schemas/{name}" for name in schemas}
        for family in ("Organisation", "Team", "Key", "User", "Budget", "Token"):
            assert schemas[f"New{family}"]["additionalProperties"] is False
        assert schemas["Limits"]["properties"]["concurrent"]["anyOf"][0]["minimum"] == 1
        for path, methods in document["paths"].items():
            assert {"400", "401", "403", "405", "503"} <= set(methods[next(iter(methods))]["responses"])
            for method in methods:
                answer = await gateway.admin(method, path.removeprefix("/admin/v1"))
                assert answer.status_code != 405, (method, path)
                assert str(answer.status_code) in methods[method]["responses"], (method, path, answer.text)


def test_a_document_of_nothing_has_its_own_path() -> None:
    (own,) = documented([])
    assert (own.path, own.role) == ("/admin/v1/openapi.json", "viewer")
    assert list(describe([own])["paths"]) == [own.path]


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in references(value)]
    return [ref for value in node for ref in references(value)] if isinstance(node, list) else []
