"""Writes the admin API's OpenAPI document from the operations that check and answer requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from pydantic.json_schema import models_json_schema

from gateway.plane import LIMIT, LONGEST, RANKS, Asked, Operation, Parameter

_REF: Final = "#/components/schemas/{name}"
_ERROR: Final = {"$ref": "#/components/schemas/Error"}


def documented(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, and one more that answers with their description."""

    async def show(asked: Asked) -> object:
        return document

    own = Operation("GET", "/admin/v1/openapi.json", "getOpenApi", "This document", show, None)
    everything = [*operations, own]
    document = msgspec.Raw(msgspec.json.encode(describe(everything)))
    return everything


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    answers = list({operation.answer: None for operation in operations if operation.answer is not None})
    shown, schemas = msgspec.json.schema_components(answers, ref_template=_REF)
    answered = dict(zip(answers, shown, strict=True))
    bodies = list({operation.body: None for operation in operations if operation.body is not None})
    accepted: dict[Any, Any] = {}
    if bodies:
        by_model, defined = models_json_schema(
            [(body, "validation") for body in bodies], ref_template=_REF.replace("name", "model")
        )
        accepted = {model: schema for (model, _), schema in by_model.items()}
        clash = schemas.keys() & defined.get("$defs", {}).keys()
        assert not clash, f"{clash} are both asked and answered: name one of them differently"
        schemas |= defined.get("$defs", {})
    text = {"type": "string"}
    error = dict.fromkeys(("message", "type", "code"), text) | {"param": {"type": ["string", "null"]}}
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": list(error), "properties": error}},
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        told = _operation(operation, answered.get(operation.answer, {"type": "object"}), accepted.get(operation.body))
        paths.setdefault(operation.path, {})[operation.method.lower()] = told
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollkeeper admin API", "version": "1"},
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(operation: Operation, answer: dict[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
    in_path = re.findall(r"{(\w+)}", operation.path)
    parameters = [_path_parameter(name) for name in in_path]
    parameters += [_query_parameter(parameter) for parameter in operation.query]
    said: dict[str, tuple[str, dict[str, Any]]] = {str(operation.status): ("The answer", answer)}
    said |= {
        "400": ("Something asked cannot be understood; error.param names it", _ERROR),
        "401": ("The admin key is missing or wrong", _ERROR),
        "403": ("The admin plane is closed, or this is not yours to ask", _ERROR),
        "405": ("Not answered with this method", _ERROR),
        "503": ("The store cannot be read or written now", _ERROR),
    }
    if in_path or operation.body is not None or any(one.name == "team" for one in operation.query):
        said["404"] = ("There is no such thing, or it is not yours to see", _ERROR)
    if operation.method != "GET":
        said["409"] = ("What is there does not allow it; error.param names the field", _ERROR)
    told: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "description": f"For the role {operation.role}{' and above' if RANKS[operation.role] < 2 else ''}.",
        "parameters": parameters,
    }
    if body is not None:
        said["413"] = ("The body is too large", _ERROR)
        said["415"] = ("The body is not sent as JSON", _ERROR)
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    told["responses"] = {
        status: {"description": why, "content": {"application/json": {"schema": schema}}}
        for status, (why, schema) in sorted(said.items())
    }
    return told


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    if parameter.name == "limit":
        schema = {"type": "integer", "minimum": 1, "maximum": LIMIT, "default": 100}
    told: dict[str, Any] = {"name": parameter.name, "in": "query", "description": parameter.says, "schema": schema}
    if parameter.example:
        told["example"] = int(parameter.example) if parameter.name == "limit" else parameter.example
    return told
