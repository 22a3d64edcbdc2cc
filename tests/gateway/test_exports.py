"""Each export that is understood, read exactly; and what is none of them, or damaged, refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.exports import BadExport, Export, family, read

DAY = 1_788_220_800  # 2026-09-01T00:00:00Z
FIRST, SECOND = "2026-09-01", "2026-09-02"


def bucket(day: int, *results: dict[str, Any]) -> dict[str, Any]:
    start = DAY + day * 86_400
    return {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": list(results)}


def page(*buckets: dict[str, Any], more: bool = False) -> str:
    return json.dumps({"object": "page", "data": list(buckets), "has_more": more, "next_page": "x" if more else None})


def used(model: str | None, asked: int, cached: int, answered: int) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result", "input_tokens": asked, "output_tokens": answered,
        "input_cached_tokens": cached, "input_audio_tokens": 0, "num_model_requests": 5, "project_id": None,
        "user_id": None, "api_key_id": None, "model": model, "batch": None,
    }  # fmt: skip


def cost(item: str | None, value: Any, currency: str = "usd") -> dict[str, Any]:
    amount = {"value": value, "currency": currency}
    return {"object": "organization.costs.result", "amount": amount, "line_item": item, "project_id": None}


def days(day: int, *results: dict[str, Any]) -> dict[str, Any]:
    first, second = FIRST + "T00:00:00Z", SECOND + "T00:00:00Z"
    third = "2026-09-03T00:00:00Z"
    return {"starting_at": (first, second)[day], "ending_at": (second, third)[day], "results": list(results)}


def spans(found: Export) -> tuple[int, int]:
    return (found.start - DAY) // 86_400, (found.end - DAY) // 86_400


def test_openais_usage_by_model_over_several_pages_one_after_the_other() -> None:
    first = page(bucket(0, used("gpt-4o-2024-08-06", 1000, 800, 500), used("o3", 7, 0, 1)), more=True)
    second = page(bucket(1, used("gpt-4o-2024-08-06", 10, 0, 5), used("gpt-4o", 1, 1, 1)), bucket(2))
    expected = {
        (FIRST, "gpt-4o", "input"): 1000, (FIRST, "gpt-4o", "cached input"): 800, (FIRST, "gpt-4o", "output"): 500,
        (FIRST, "o3", "input"): 7, (FIRST, "o3", "cached input"): 0, (FIRST, "o3", "output"): 1,
        (SECOND, "gpt-4o", "input"): 11, (SECOND, "gpt-4o", "cached input"): 1, (SECOND, "gpt-4o", "output"): 6,
    }  # fmt: skip
    for text in (
        first + second,
        first + "\n" + second + "\n",
        f"[{first},{second}]",
        "\ufeff" + first + ",\n" + second,
    ):
        found = read(text)
        assert (found.unit, found.sums, spans(found), found.partial) == ("tokens", expected, (0, 3), False)
    assert found.names["gpt-4o"] == "gpt-4o-2024-08-06"


def test_openais_costs_are_added_up_exactly_before_they_are_rounded_to_nano_usd() -> None:
    parts = [cost("gpt-4o-2024-08-06, input", value) for value in (0.1, 0.2, "0.0000000004", "0.0000000004")]
    found = read(page(bucket(0, *parts, cost("gpt-4o-2024-08-06, output", 1), cost("web search tool calls", 0.01))))
    assert found.unit == "usd"
    assert found.sums == {
        (FIRST, "gpt-4o", "usd"): 1_300_000_001,
        (FIRST, "web-search-tool-calls", "usd"): 10_000_000,
    }
    assert read(page(bucket(0, cost(None, 0.06)))).sums == {(FIRST, "", "usd"): 60_000_000}


def test_embeddings_may_stand_beside_completions() -> None:
    embedded = {"object": "organization.usage.embeddings.result", "input_tokens": 9, "model": "text-embedding-3-small"}
    found = read(page(bucket(0, used("o3", 1, 0, 1))) + page(bucket(0, embedded)))
    assert found.sums[FIRST, "text-embedding-3-small", "input"] == 9


def test_anthropics_usage_report_counts_what_was_cached_as_input() -> None:
    result = {
        "uncached_input_tokens": 1500, "cache_creation": {"ephemeral_1h_input_tokens": 1000,
        "ephemeral_5m_input_tokens": 500}, "cache_read_input_tokens": 200, "output_tokens": 50,
        "server_tool_use": {"web_search_requests": 10}, "api_key_id": None, "workspace_id": None,
        "model": "claude-haiku-4-5-20251001", "service_tier": "standard", "context_window": "0-200k",
    }  # fmt: skip
    found = read(json.dumps({"data": [days(0, result), days(1)], "has_more": True, "next_page": "page_x"}))
    assert (found.unit, spans(found), found.partial) == ("tokens", (0, 2), True)
    assert found.sums == {
        (FIRST, "claude-haiku-4-5", "input"): 3200, (FIRST, "claude-haiku-4-5", "cached input"): 200,
        (FIRST, "claude-haiku-4-5", "output"): 50,
    }  # fmt: skip


def test_anthropics_cost_report_is_in_cents() -> None:
    result = {
        "currency": "USD", "amount": "123.78912", "workspace_id": None, "description": "Claude Sonnet 4 Usage",
        "cost_type": "tokens", "context_window": "0-200k", "model": "claude-sonnet-4-20250514",
        "service_tier": "standard", "token_type": "uncached_input_tokens",
    }  # fmt: skip
    search = {"currency": "USD", "amount": "1", "model": None, "cost_type": "web_search"}
    found = read(json.dumps({"data": [days(0, result, result, search)], "has_more": False, "next_page": None}))
    assert found.unit == "usd"
    assert found.sums == {(FIRST, "claude-sonnet-4", "usd"): 2_475_782_400, (FIRST, "", "usd"): 10_000_000}


def test_the_csv_of_openais_dashboard() -> None:
    head = (
        "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,"
        "quantity,quantity_unit,line_item\n"
    )
    iso = "2026-09-01T00:00:00+00:00,2026-09-02T00:00:00+00:00"
    rows = (
        f'{DAY},{DAY + 86400},{iso},0.003835980000000000000000000000,usd,1,tokens,"gpt-5-nano, input_tokens"\r\n'
        f"{DAY + 86400},{DAY + 172800},,,,,,,\r\n"  # a day without any cost
    )
    found = read(head + rows)
    assert (found.sums, spans(found)) == ({(FIRST, "gpt-5-nano", "usd"): 3_835_980}, (0, 2))
    head = "start_time,end_time,project_id,num_model_requests,model,input_tokens,input_cached_tokens,output_tokens\n"
    found = read(head + f"{DAY},{DAY + 86400},,10,gpt-4o,1000,400,50\n{DAY},{DAY + 86400},p,1,gpt-4o,1,0,2\n")
    assert list(found.sums.values()) == [1001, 400, 52]


def test_the_csv_of_the_claude_console() -> None:
    usage = (
        "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
        "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
        "usage_output_tokens,web_search_count,inference_geo,speed\n"
        "2026-09-01,claude-opus-4-1-20250805,app,Default,standard,≤ 200k,100,20,3,4000,50,0,global,\n"
    )
    assert list(read(usage).sums.values()) == [4123, 4000, 50]
    bill = (
        "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd\n"
        "2026-09-01,Claude Haiku 4.5,Default,app,message,≤ 200k,input_no_cache,0.05,0.05\n"
        "2026-09-01,Claude Haiku 4.5,Default,app,message,≤ 200k,output,0.02,0.02\n"
    )
    assert read(bill).sums == {(FIRST, "claude-haiku-4-5", "usd"): 70_000_000}


@pytest.mark.parametrize(
    ("names", "one"),
    [
        (("gpt-4o", "gpt-4o-2024-08-06", "GPT-4o"), "gpt-4o"),
        (("claude-3-5-sonnet-20241022", "claude-3-5-sonnet-latest", "Claude 3.5 Sonnet"), "claude-3-5-sonnet"),
        (("gpt-4o-mini",), "gpt-4o-mini"),
        (("ft:gpt-4o-2024-08-06:org::id",), "ft:gpt-4o-2024-08-06:org::id"),
    ],
)
def test_snapshots_and_spellings_of_a_model_are_one_family(names: tuple[str, ...], one: str) -> None:
    assert {family(name) for name in names} == {one}


TWICE = bucket(0, used("o3", 1, 0, 1))
COSTS = "start_time,end_time,amount_value,amount_currency\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected is an export"),
        ("PK\x03\x04", "names no columns"),
        ("name,age\nanna,7\n", "names no columns"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"data": [], "x": ' + "9" * 5000 + "}", "no JSON"),
        ('{"error": {"message": "Incorrect API key"}}', "a list `data`"),
        ('{"data": {}}', "a list `data`"),
        ('{"data": []}', "there is no day"),
        (page(bucket(0), bucket(1)), "no figure"),
        (COSTS + "1,2,,\n", "no figure"),
        ('{"data": [1]}', "a list `results`"),
        ('{"data": [{"results": []}]}', "start_time"),
        ('{"data": [{"start_time": 5, "end_time": 4, "results": []}]}', "start_time"),
        ('{"data": [{"start_time": true, "end_time": 4, "results": []}]}', "start_time"),
        ('{"data": [{"starting_at": "2026-09-01", "ending_at": "2026-09-02", "results": []}]}', "starting_at"),
        (page(bucket(0, {"object": "organization.usage.vector_stores.result", "usage_bytes": 5})), "neither an amount"),
        (page(bucket(0, cost("x", 1, "eur"))), "only USD"),
        (page(bucket(0, cost("x", "1; DROP TABLE"))), "is no amount"),
        (page(bucket(0, cost("x", True))), "is no amount"),
        (page(bucket(0, cost("x", "1e99"))), "is no amount"),
        (page(bucket(0, cost("x", float("nan")))), "NaN is no amount"),
        (page(bucket(0, used("o3", 1, 0, 1), cost("x", 1))), "tokens and USD"),
        (page(TWICE) + page(TWICE), "a page came twice"),
        (COSTS + "5,4,1,usd\n", "no span of seconds"),
        (COSTS + "1,2,1\n", "line 2 has not as many cells"),
        (COSTS + "1,2,1,usd,5\n", "line 2 has not as many cells"),
        (COSTS + '1,2,"1', "no CSV"),
        ("usage_date_utc,model,cost_usd\nyesterday,m,1\n", "is no day"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(BadExport, match=says):
        read(text)
