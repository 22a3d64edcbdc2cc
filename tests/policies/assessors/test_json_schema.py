"""An answer is JSON of the shape that was asked for, or the verdict says where it is not."""

from __future__ import annotations

from bench import texts
from bench.assess import SETS
from tests.assessed import made, verdict


async def test_the_built_in_set_is_told_apart() -> None:
    schema = made("json_schema", **SETS["json_schema"][1])
    for one in texts.json_schema():
        assert ((await verdict(schema, one.text)).score >= 0.5) == one.unsafe, one.text


async def test_the_explanation_names_the_place_and_never_the_value() -> None:
    schema = made("json_schema", schema={"properties": {"a": {"type": "integer"}}})
    found = await verdict(schema, '{"a": "canary-value"}')
    assert "properties/a/type" in found.explanation
    assert "canary" not in found.explanation
    assert (await verdict(made("json_schema"), "{")).explanation == "not JSON"
