"""What the audit log keeps of an object, and how its rows hang together."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from gateway.store.directory import KINDS, START, Entry, Item, Key, Secret, Team, Walk, chain, kind, told

AT = "2026-01-01T00:00:00Z"
ENTRY = Entry(AT, "root", "create", "team a", None, '{"name":"a"}')


def test_of_a_key_only_its_hint_is_told() -> None:
    key = Key("key_1", "a", "web", Secret("aa" * 32, "wxyz"), AT, "root", [Secret("bb" * 32, "stuv", 7)])
    text = told(key)
    assert text is not None
    facts = msgspec.json.decode(text)
    assert (facts["hint"], facts["former"]) == ("wxyz", [{"hint": "stuv", "until": 7}])
    assert "secret" not in facts
    assert "aaaa" not in text
    assert "bbbb" not in text
    assert told(None) is None


def test_one_object_is_always_told_in_the_same_words() -> None:
    assert told(Team("a", AT, limits={"x": 1, "b": 2})) == told(Team("a", AT, limits={"b": 2, "x": 1}))


def test_every_kind_is_known_by_its_name() -> None:
    assert all(kind_.__struct_config__.tag == name for name, kind_ in KINDS.items())
    assert kind(Team("a", AT)) == "team"


def test_a_hash_depends_on_everything_before_it() -> None:
    first = chain(START, 1, ENTRY)
    assert len(first) == 64
    others = [
        chain(first, 1, ENTRY),
        chain(START, 2, ENTRY),
        *(chain(START, 1, msgspec.structs.replace(ENTRY, **{word: "x"})) for word in ENTRY.__struct_fields__),
    ]
    assert len({first, *others}) == 9


def rows(*changes: tuple[str, Item | None]) -> Walk:
    walk = Walk()
    for seq, (object, after) in enumerate(changes, 1):
        entry = Entry(AT, "root", "change", object, None, told(after))
        facts = (AT, "root", "change", object, None, told(after))
        assert walk.step((seq, *facts, chain(walk.hash, seq, entry)))
    return walk


def test_a_walk_stops_at_the_first_row_that_does_not_fit() -> None:
    row = (ENTRY.at, ENTRY.actor, ENTRY.action, ENTRY.object, ENTRY.before, ENTRY.after)
    walk = Walk()
    assert walk.step((1, *row, chain(START, 1, ENTRY)))
    assert not walk.step((2, *row, chain(START, 2, ENTRY)))
    assert walk.end(2, []).problem.startswith("row 2 ")


def test_what_is_there_is_what_the_log_says() -> None:
    team, key = Team("a", AT), Key("key_1", "a", "web", Secret("aa" * 32, "wxyz"), AT, "root", revoked=AT)
    log = [("team a", team), ("key key_1", key)]
    assert rows(*log).end(2, [team, key]).problem == ""
    assert "rows after 2 are missing" in rows(*log).end(3, [team, key]).problem
    for tampered in (replace(key, revoked=None), replace(key, limits={"concurrent": 5}), replace(key, team="b")):
        assert "key key_1 is not as the log says" in rows(*log).end(2, [team, tampered]).problem
    assert "team b is not as the log says" in rows(*log).end(2, [team, key, Team("b", AT)]).problem
    assert "key key_1 is gone" in rows(*log).end(2, [team]).problem
    assert rows(*log, ("team a", None)).end(3, []).problem == ""  # its revoked keys go with it
    assert "team a is not as the log says" in rows(*log, ("team a", None)).end(3, [team]).problem
    anew = [*log, ("team a", None), ("team a", team)]
    assert rows(*anew).end(4, [team]).problem == ""  # one of the same name has none of them
    assert "key key_2 is gone" in rows(*anew, ("key key_2", replace(key, id="key_2"))).end(5, [team]).problem


def test_a_word_that_a_later_version_added_is_no_tampering() -> None:
    team = Team("a", AT)
    facts = msgspec.json.decode(told(team) or "")
    del facts["disabled"]
    older = msgspec.json.encode(facts).decode()
    walk = Walk()
    entry = Entry(AT, "root", "create", "team a", None, older)
    assert walk.step((1, AT, "root", "create", "team a", None, older, chain(START, 1, entry)))
    assert walk.end(1, [team]).problem == ""
