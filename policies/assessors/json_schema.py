"""Whether an answer is JSON, and JSON of a given shape.  On a stream the whole answer is held back until it is judged."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import msgspec
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict


class JsonSchema(Assessor):
    """Score 1 where the answer does not validate.  The explanation names the place in the schema, never the value."""

    type: ClassVar[str] = "pattern"
    stages: ClassVar[frozenset[str]] = frozenset({"output"})
    whole: ClassVar[bool] = True

    class Settings(settings.Settings):
        schema_: dict[str, Any] | None = Field(
            None, alias="schema"
        )  # JSON Schema, draft 2020-12 (extra: schema); none: any JSON
        fenced: bool = True  # an answer in a Markdown fence counts as what stands in it

        @model_validator(mode="after")
        def _compiles(self) -> Self:
            if self.schema_ is not None:
                _validator(self.schema_)
            return self

    def __init__(self, said: Settings | None = None) -> None:
        said = said or self.Settings.model_validate({})
        self._fenced = said.fenced
        self._errors = None if said.schema_ is None else _validator(said.schema_)

    async def assess(self, text: str, stage: str) -> Verdict:
        text = text.strip()
        if self._fenced and text.startswith("```") and text.endswith("```"):
            text = text[3:-3].partition("\n")[2]
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return Verdict(1.0, 1.0, "not JSON")
        if self._errors is None:
            return PASSED
        for error in self._errors.iter_errors(value):
            return Verdict(1.0, 1.0, "schema: " + "/".join(map(str, error.schema_path))[:200])
        return PASSED


def _validator(schema: dict[str, Any]) -> Any:
    try:
        import jsonschema_rs
    except ModuleNotFoundError:
        mend = "pip install 'tollkeeper[schema]'"
        raise PydanticCustomError("told", "schemas", {"wrong": "needs jsonschema-rs", "mend": mend}) from None
    try:
        return jsonschema_rs.validator_for(schema)
    except ValueError:
        mend = "see json-schema.org, draft 2020-12"
        raise PydanticCustomError("told", "schema", {"wrong": "is not a JSON Schema", "mend": mend}) from None
