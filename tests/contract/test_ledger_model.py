"""Whatever is done to a ledger, in whatever order, it ends as a model of a few dictionaries says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.ledger import Budget, Granted, Posting, Refused
from gateway.periods import period_of
from tests.ledger_model import UNLIMITED, Account, Model
from tests.ledgers import SECOND, House, house
from tests.servers import Postgres, shared_server  # noqa: F401  (pytest finds the fixture by this import)

T = TypeVar("T")
BUDGETS = (("org", "month", True), ("team", "day", True), ("user", "day", False), ("all", "total", True))
AMOUNTS = st.integers(0, 60)
OWNERS = st.sampled_from(["one", "two"])


class Machine(RuleBasedStateMachine):
    """One example.  `at` and `loop` are set by the test: the examples share a ledger, each has budgets of its own."""

    at: House
    loop: asyncio.AbstractEventLoop
    examples = 0

    def do(self, step: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(step, 10))

    @initialize(limits=st.lists(st.integers(0, 200), min_size=4, max_size=4))
    def begin(self, limits: list[int]) -> None:
        Machine.examples += 1
        _, month_ends = period_of("month", "Europe/Berlin", self.at.now) or (0, 0)
        self.do(self.at.at(month_ends))  # the same moment of a month for each, or what was drawn cannot be drawn again
        self.name = f"e{Machine.examples}"
        self.model = Model(now=self.at.now)
        self.limits = [*limits]
        self.holds: list[Posting] = []
        self.current: list[int] = []
        self.sums: dict[int, tuple[int, int]] = {}
        self.open()

    def budgets(self) -> list[Budget]:
        return [
            Budget(f"{self.name}:{scope}/{period}", period, "Europe/Berlin", limit, hard)  # type: ignore[arg-type]  # a period
            for (scope, period, hard), limit in zip(BUDGETS, self.limits, strict=True)
        ]

    @rule()
    def open(self) -> None:
        windows = self.do(self.at.ledger.open_windows(self.budgets()))
        self.current = [window.id for window in windows]
        for window, budget in zip(windows, self.budgets(), strict=True):
            if window.id not in self.model.accounts:
                ceiling = budget.limit if budget.hard else UNLIMITED
                self.model.accounts[window.id] = Account(budget.limit, budget.hard, window.end, ceiling)
            assert window.start is None or window.start <= self.at.now
            assert window.end is None or self.at.now < window.end
            self.model.limit(window.id, budget.limit, budget.hard)

    @rule(which=st.integers(0, 3), limit=st.integers(0, 200))
    def change_a_limit(self, which: int, limit: int) -> None:
        self.limits[which] = limit
        self.open()

    @rule(which=st.sets(st.integers(0, 3), min_size=1), amount=AMOUNTS, ttl=st.integers(1, 50), owner=OWNERS)
    def reserve(self, which: set[int], amount: int, ttl: int, owner: str) -> None:
        self._reserve([self.current[i] for i in which], amount, None, owner, ttl)

    @rule(
        which=st.integers(0, 3),
        amount=st.integers(1, 200),
        part=st.integers(1, 200),
        ttl=st.integers(1, 50),
        owner=OWNERS,
    )
    def lease(self, which: int, amount: int, part: int, ttl: int, owner: str) -> None:
        self._reserve([self.current[which]], amount, min(part, amount), owner, ttl)

    def _reserve(self, windows: list[int], amount: int, minimum: int | None, owner: str, ttl: int) -> None:
        id = f"{self.name}.r{len(self.model.held)}"
        answer = self.do(self.at.ledger.reserve(id, windows, amount, minimum=minimum, owner=owner, ttl=ttl))
        expected = self.model.reserve(id, windows, amount, minimum, owner, self.at.now + ttl * SECOND)
        assert told(answer) == expected
        again = self.do(self.at.ledger.reserve(id, windows, amount, minimum=minimum, owner=owner, ttl=ttl))
        assert told(again) == expected
        assert isinstance(again, Refused) or again.replay

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), amount=st.integers(1, 100), part=st.integers(1, 100))
    def grow(self, data: st.DataObject, amount: int, part: int) -> None:
        leases = [id for id, held in self.model.held.items() if len(held.windows) == 1]
        if leases:
            id = data.draw(st.sampled_from(leases))
            answer = self.do(self.at.ledger.grow(id, amount, min(part, amount)))
            assert told(answer) == self.model.grow(id, amount, min(part, amount))

    def posting(self, data: st.DataObject, reservation: str) -> Posting:
        held = data.draw(AMOUNTS)
        kind = data.draw(st.sampled_from(["settle", "settle", "expire"]))
        amount = data.draw(st.integers(0, held) if kind == "expire" else st.none() | st.integers(0, 2 * held))
        note = {"team": data.draw(st.sampled_from(["a", "b"])), "estimated": True}
        last = data.draw(st.booleans())
        made = Posting(f"{self.name}.h{len(self.holds)}", reservation, amount, held, kind, note, last)
        self.holds.append(made)
        return made

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), count=st.integers(1, 3))
    def post(self, data: st.DataObject, count: int) -> None:
        reservations = data.draw(st.lists(st.sampled_from(list(self.model.held)), min_size=count, max_size=count))
        postings = [self.posting(data, reservation) for reservation in reservations]
        assert self.do(self.at.ledger.post(postings)) == [self.model.post(posting) for posting in postings]

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def post_again_or_late(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.holds))
        truth = old._replace(kind="settle", amount=data.draw(st.none() | AMOUNTS))
        assert self.do(self.at.ledger.post([old, truth])) == [self.model.post(old), self.model.post(truth)]

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), amount=st.none() | AMOUNTS)
    def release(self, data: st.DataObject, amount: int | None) -> None:
        id = data.draw(st.sampled_from(list(self.model.held)))
        assert self.do(self.at.ledger.release(id, amount)) == self.model.release(id, amount)

    @rule(owner=OWNERS, ttl=st.integers(1, 50))
    def renew(self, owner: str, ttl: int) -> None:
        lost = self.do(self.at.ledger.renew(owner, ttl))
        mine = [id for id in lost if id.startswith(f"{self.name}.")]
        assert mine == self.model.renew(owner, self.at.now + ttl * SECOND)

    @rule(seconds=st.sampled_from([1, 10, 60, 3600]))
    def wait(self, seconds: int) -> None:
        self.do(self.at.move(seconds))
        self.model.now = self.at.now

    @rule()
    def wait_for_the_next_period(self) -> None:
        ends = [self.model.accounts[id].end for id in self.current]
        self.do(self.at.at(min(max(end, self.at.now) for end in ends if end is not None)))
        self.model.now = self.at.now
        self.open()

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        some = st.sets(st.sampled_from(list(self.model.held))) if self.model.held else st.just(set())
        known = {
            id: [self.posting(data, id) for _ in range(data.draw(st.integers(0, 2)))] for id in sorted(data.draw(some))
        }
        assert self.do(self.at.ledger.expire(known.get)) == self.model.expire(known)

    @rule(which=st.integers(0, 3), frozen=st.booleans())
    def freeze(self, which: int, frozen: bool) -> None:
        account = self.model.accounts[self.current[which]]
        changed = self.do(self.at.ledger.freeze([self.current[which]], frozen))
        assert changed == (account.frozen is not frozen)
        account.frozen = frozen

    @invariant()
    def is_what_the_model_says(self) -> None:
        for window in self.do(self.at.ledger.windows(f"{self.name}:", current=False)):
            account = self.model.accounts[window.id]
            assert (window.limit, window.ceiling, window.frozen) == (account.limit, account.ceiling, account.frozen)
            assert (window.spent, window.reserved, window.overrun) == (account.spent, account.reserved, account.overrun)
            assert window.spent + window.reserved <= window.ceiling  # I1
            assert window.spent + window.overrun == account.entries  # I4
            assert min(window.spent, window.reserved, window.overrun) >= 0  # I14
            held = [one.rest for one in self.model.held.values() if window.id in one.windows]
            assert window.reserved == sum(held)  # I3
            seq, used = self.sums.get(window.id, (0, 0))
            assert window.seq >= seq  # I10
            if window.spent + window.overrun < used:
                assert self.corrections(window.id) > 0
            self.sums[window.id] = (window.seq, window.spent + window.overrun)
        assert [d for d in self.do(self.at.ledger.audit()) if d.kind != "overdue"] == []

    def corrections(self, window: int) -> int:
        column = "window_id" if self.at.place.startswith("postgres") else "window"
        rows = self.do(self.at.sql(f"SELECT 1 FROM tollkeeper.entry WHERE kind = 'correct' AND {column} = {window}"))
        return len(rows)

    def teardown(self) -> None:
        for id in getattr(self, "model", Model()).held:
            self.do(self.at.ledger.release(id))
            self.do(self.at.ledger.release(id))


def told(answer: Granted | Refused) -> int | str:
    return answer.amount if isinstance(answer, Granted) else answer.reason


def followed(
    kind: str, folder: Path, server: Postgres, examples: int, shrink: bool = True, begin: int | None = None
) -> None:
    """Raises where the ledger and the model differ.  begin: of the dice; None: the same in each run."""
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    at = loop.run_until_complete(stack.enter_async_context(house(kind, folder, server)))
    machine = type("Machine", (Machine,), {"at": at, "loop": loop})
    if begin is not None:
        machine = seed(begin)(machine)
    chosen = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=begin is None,
        phases=[Phase.generate, Phase.shrink][: 1 + shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        run_state_machine_as_test(machine, settings=chosen)
    finally:
        loop.run_until_complete(stack.aclose())
        loop.close()


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 60), ("postgres", 25)])
def test_a_ledger_does_what_the_model_does(kind: str, examples: int, tmp_path: Path, server: Postgres) -> None:
    followed(kind, tmp_path, server, examples)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 3000), ("postgres", 1500)])
def test_a_ledger_does_what_the_model_does_for_long(kind: str, examples: int, tmp_path: Path, server: Postgres) -> None:
    for begin in range(examples // 100):  # each on a ledger of its own, for an audit looks at all of it
        folder = tmp_path / str(begin)
        folder.mkdir()
        followed(kind, folder, server, 100, begin=begin)
