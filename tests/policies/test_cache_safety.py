"""The cache and safety together: what is answered again is judged again, and never by less than its own team's rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.policies.test_cache import CRON, OTHER, ask, said, word
from tests.policies.test_safety_masking import ASKED, MAIL, echo
from tests.running import KEY, Running, running
from tests.scripted import Asked, Scripted, answer, events, plain, say, scripted

SHARED = [["checkout", "guests"]]
SECRET = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"


async def telling(asked: Asked) -> None:
    if asked.json.get("stream"):
        await say(asked, events("The key is ", SECRET[:7], SECRET[7:], ", keep it"))
    else:
        await asked.wire.whole(200, answer(f"The key is {SECRET}, keep it"))


@asynccontextmanager
async def both(script: Any, *assessors: dict[str, Any], **cache: Any) -> AsyncIterator[tuple[Running, Scripted]]:
    async with scripted(script) as up:
        told = said(up.url, **cache)
        told["policies"].append({"use": "safety", "assessors": list(assessors)})
        async with running(told) as gateway:
            yield gateway, up


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("again", [False, True])
async def test_what_is_redacted_stays_redacted_in_hits(first: bool, again: bool) -> None:
    async with both(telling, {"use": "secrets", "action": "redact"}) as (gateway, up):
        one = await ask(gateway, stream=first)
        two = await ask(gateway, stream=again)
        assert (word(one), word(two)) == ("miss", "hit")
        assert len(up.asked) == 1
        for response in (one, two):
            assert SECRET[:7] not in response.text
            assert SECRET[7:] not in response.text
            assert "keep it" in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_blocked_is_kept_for_nobody(stream: bool) -> None:
    async with both(telling, {"use": "secrets", "action": "block"}) as (gateway, up):
        for count in (1, 2):
            response = await ask(gateway, stream=stream)
            assert "blocked_by_safety" in response.text
            assert SECRET[7:] not in response.text
            assert len(up.asked) == count


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hit_is_judged_by_the_rules_of_the_team_that_gets_it(stream: bool) -> None:
    """The teams share their answers; only one of them may not ask for this."""
    banned = {"use": "words", "topics": {"projects": ["project zephyr"]}, "action": "block", "teams": ["guests"]}
    async with both(telling, banned, groups=SHARED) as (gateway, up):
        text = "What became of project zephyr?"
        assert (await ask(gateway, text, stream=stream)).status_code == 200
        refused = await ask(gateway, text, key=OTHER, stream=stream)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "blocked_by_safety"
        assert word(await ask(gateway, text, stream=stream)) == "hit"
        shared = await ask(gateway, "What else?", stream=stream)
        assert (shared.status_code, word(await ask(gateway, "What else?", key=OTHER, stream=stream))) == (200, "hit")
        assert len(up.asked) == 2


async def test_a_follower_is_judged_by_the_rules_of_its_own_team() -> None:
    banned = {"use": "words", "topics": {"projects": ["project zephyr"]}, "action": "block", "teams": ["guests"]}
    come = asyncio.Event()

    async def slow(asked: Asked) -> None:
        await come.wait()
        await telling(asked)

    async with both(slow, banned, groups=SHARED) as (gateway, up):
        text = "What became of project zephyr?"
        asks = [asyncio.create_task(ask(gateway, text, key=key, stream=True)) for key in (KEY, CRON, OTHER)]
        await asyncio.sleep(0.3)
        come.set()
        leader, follower, guest = await asyncio.gather(*asks)
        assert (leader.status_code, follower.status_code) == (200, 200)
        assert leader.text.count("keep it") == follower.text.count("keep it") == 1
        assert "blocked_by_safety" in guest.text
        assert "keep it" not in guest.text
        assert len(up.asked) == 1


@pytest.mark.parametrize("action", ["mask", "redact"])
@pytest.mark.parametrize("first", [KEY, OTHER], ids=["who is masked first", "last"])
async def test_teams_whose_questions_are_changed_by_other_rules_do_not_share(action: str, first: str) -> None:
    """They ask the same, and the provider is asked something else."""

    async def script(asked: Asked) -> None:
        await asyncio.sleep(0.1)
        await asked.wire.whole(200, answer(asked.json["messages"][0]["content"]))

    rule = {"use": "personal_data", "action": action, "teams": ["checkout"]}
    async with both(script, rule, groups=SHARED) as (gateway, up):
        keys = [first, KEY if first == OTHER else OTHER]
        for responses in (
            await asyncio.gather(*[ask(gateway, f"Mail {MAIL}", key=key) for key in keys]),
            [await ask(gateway, f"Mail {MAIL}", key=key) for key in keys],
        ):
            told = [one.json()["choices"][0]["message"]["content"] for one in responses]
            assert told[keys.index(OTHER)] == f"Mail {MAIL}"
            assert (MAIL in told[keys.index(KEY)]) is (action == "mask")
        assert [word(response) for response in responses] == ["hit", "hit"]
        assert len(up.asked) == 2


@pytest.mark.parametrize(
    "rule", [{"action": "mask"}, {"action": "redact", "stages": ["output"], "teams": ["guests"]}], ids=str
)
async def test_those_whose_questions_stay_alike_do(rule: dict[str, Any]) -> None:
    async with both(plain, {"use": "personal_data", **rule}, groups=SHARED) as (gateway, up):
        assert [word(await ask(gateway, key=key)) for key in (KEY, OTHER)] == ["miss", "hit"]
        assert len(up.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_placeholders_in_a_kept_answer_stand_for_what_this_call_said(stream: bool) -> None:
    async with both(echo, {"use": "personal_data", "action": "mask"}, tools=["*"]) as (gateway, up):
        responses = [await ask(gateway, ASKED, stream=stream) for _ in range(2)]
        assert [word(response) for response in responses] == ["miss", "hit"]
        other = await ask(gateway, ASKED.replace(MAIL, "grace@example.org"), stream=stream)
        assert word(other) == "miss"
        for response in responses:
            assert MAIL in response.text
            assert "grace@example.org" not in response.text
        assert "grace@example.org" in other.text
        assert MAIL not in other.text
        assert all(MAIL not in str(asked.json) for asked in up.asked)


@pytest.mark.parametrize(
    "order", [["model", "temperature", "messages", "user"], ["user", "model", "temperature", "messages"]]
)
async def test_a_placeholder_never_stands_for_somebody_elses_value(order: list[str]) -> None:
    """Placeholders are numbered as the values stand in a body, fields that do not count as asked among them."""

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, answer(asked.json["messages"][0]["content"]))

    fields = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "Mail bob@acme.com"}]}
    async with both(script, {"use": "personal_data", "action": "mask"}) as (gateway, _):
        for user in ("alice@acme.com", None, "carol@acme.com"):
            body = {name: value for name in order if (value := {**fields, "user": user}.get(name)) is not None}
            response = await gateway.client.post("/v1/chat/completions", json=body)
            assert response.json()["choices"][0]["message"]["content"] == "Mail bob@acme.com"


@pytest.mark.parametrize("action", ["redact", "block"])
async def test_the_record_of_a_hit_holds_no_more_than_its_caller_got(action: str) -> None:
    guests = {"teams": ["guests"]} if action == "block" else {}
    async with scripted(telling) as up:
        told = said(up.url, groups=SHARED)
        told["policies"].append({"use": "safety", "assessors": [{"use": "secrets", "action": action, **guests}]})
        for team in told["teams"].values():
            team["content"] = "full"
        async with running(told) as gateway:
            await ask(gateway, f"my key is {SECRET}" if action == "redact" else "hi")
            again = await ask(gateway, f"my key is {SECRET}" if action == "redact" else "hi", key=OTHER)
            assert word(again) == "hit"
            assert SECRET not in again.text
            record = await gateway.record((await gateway.finished(2)).id)
    assert record.content is not None
    assert SECRET not in record.content.input
    assert SECRET not in record.content.output


async def test_a_refusal_about_what_does_not_count_as_asked_is_the_leaders_own() -> None:
    come = asyncio.Event()

    async def script(asked: Asked) -> None:
        await come.wait()
        if asked.json.get("metadata"):
            await asked.wire.whole(400, b'{"error": {"message": "metadata: Jane Roe"}}')
        else:
            await telling(asked)

    async with both(script, {"use": "urls", "deny": ["x.example"]}) as (gateway, up):
        first = asyncio.create_task(ask(gateway, metadata={"patient": "Jane Roe"}))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(ask(gateway))
        await asyncio.sleep(0.2)
        come.set()
        assert (await first).status_code == 400
        assert (await second).status_code == 200
        assert "Jane Roe" not in (await second).text
        assert len(up.asked) == 2
