"""A ledger as a few dictionaries: slow, obvious, and what the real ones are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.ledger import Posting

UNLIMITED = 2**63 - 1


@dataclass
class Account:
    limit: int
    hard: bool
    end: int | None
    ceiling: int
    spent: int = 0
    reserved: int = 0
    overrun: int = 0
    frozen: bool = False
    entries: int = 0  # their sum

    def room(self) -> int:
        return (
            max(self.limit - self.spent - self.overrun - self.reserved, 0) if self.hard else 9_200_000_000_000_000_000
        )


@dataclass
class Held:
    windows: list[int]
    rest: int
    owner: str
    until: int
    state: str = "held"
    charged: dict[int, int] = field(default_factory=dict)  # window -> for its expiry, unclaimed


@dataclass
class Model:
    now: int = 0
    accounts: dict[int, Account] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    told: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)  # hold -> kind -> window -> amount

    def limit(self, id: int, limit: int, hard: bool) -> None:
        account = self.accounts[id]
        if (account.limit, account.hard) != (limit, hard):
            account.limit, account.hard = limit, hard
            account.ceiling = max(limit, account.spent + account.reserved) if hard else UNLIMITED

    def refusal(self, windows: list[int], amount: int) -> str | None:
        those = [self.accounts[id] for id in windows]
        used = [account.spent + account.overrun + amount for account in those]
        if any(account.frozen for account in those):
            return "frozen"
        if any(account.end is not None and self.now >= account.end for account in those):
            return "window_over"
        if any(account.hard and sum > account.limit for account, sum in zip(those, used, strict=True)):
            return "exhausted"
        if any(a.hard and sum + a.reserved > a.limit for a, sum in zip(those, used, strict=True)):
            return "contended"
        return None

    def reserve(
        self, id: str, windows: list[int], amount: int, minimum: int | None, owner: str, until: int
    ) -> int | str:
        refused = self.refusal(windows, amount if minimum is None else minimum)
        if refused:
            return refused
        if minimum is not None:
            amount = min(amount, self.accounts[windows[0]].room())
        self.held[id] = Held(sorted(windows), amount, owner, until)
        for window in windows:
            self.accounts[window].reserved += amount
        return amount

    def grow(self, id: str, amount: int, minimum: int) -> int | str:
        held = self.held[id]
        if held.state != "held":
            return "lost"
        refused = self.refusal(held.windows, minimum)
        if refused:
            return refused
        account = self.accounts[held.windows[0]]
        amount = min(amount, account.room())
        account.reserved += amount
        held.rest += amount
        return amount

    def post(self, posting: Posting) -> str:
        held = self.held[posting.reservation]
        told = self.told.setdefault(posting.hold, {})
        if "settle" in told or "correct" in told or ("expire" in told and posting.kind == "expire"):
            return "already"
        late = held.state != "held" or "expire" in told
        if late and posting.kind == "expire":
            return "already"
        if posting.amount is None and not late:
            if posting.last:
                self.release(posting.reservation)
            return "ok"
        if posting.amount is None and "expire" not in told and not any(held.charged.values()):
            return "already"
        if posting.kind == "expire":
            posting = posting._replace(amount=min(posting.amount or 0, held.rest))
        over = self.charge(held, posting, told, late)
        if posting.last:
            self.release(posting.reservation)
        return "overrun" if over else "corrected" if late else "ok"

    def charge(self, held: Held, posting: Posting, told: dict[str, dict[int, int]], late: bool) -> bool:
        amount = posting.amount or 0
        within = min(amount, posting.held)
        paid = 0 if late else min(within, held.rest)
        held.rest -= paid
        over = False
        kind = "correct" if late else posting.kind
        before = dict(told.get("expire", {}))
        told[kind] = {}
        for window in held.windows:
            account = self.accounts[window]
            credit = 0  # charged before for this very hold
            if late and before:
                credit = before.get(window, 0)
            elif late:
                credit = min(posting.held, held.charged.get(window, 0))
                held.charged[window] = held.charged.get(window, 0) - credit
            account.reserved -= paid
            account.spent += min(within, paid + credit) - credit
            missing = within - min(within, paid + credit)
            fits = min(missing, max(account.ceiling - account.spent - account.reserved, 0))
            account.spent += fits
            account.overrun += amount - within + missing - fits
            over = over or amount - within + missing - fits > 0
            told[kind][window] = min(within, paid + credit) + fits
            account.entries += amount - credit
        return over

    def release(self, id: str, amount: int | None = None) -> str:
        held = self.held[id]
        if held.state == "closed" or (held.state == "expired" and amount is not None):
            return "already"
        if held.state == "expired":
            for window, charged in held.charged.items():
                self.accounts[window].spent -= charged
                self.accounts[window].entries -= charged
            held.charged.clear()
            held.state = "closed"
            return "closed"
        given = held.rest if amount is None else min(amount, held.rest)
        held.rest -= given
        for window in held.windows:
            self.accounts[window].reserved -= given
        if held.rest == 0:
            held.state = "closed"
        return held.state if held.state == "closed" else "released"

    def renew(self, owner: str, until: int) -> list[str]:
        for held in self.held.values():
            if held.owner == owner and held.state == "held":
                held.until = until
        return sorted(id for id, held in self.held.items() if held.owner == owner and held.state == "expired")

    def expire(self, known: dict[str, list[Posting]]) -> int:
        due = [(id, held) for id, held in self.held.items() if held.state == "held" and held.until <= self.now]
        for id, held in sorted(due, key=lambda one: (one[1].until, one[0])):
            for posting in known.get(id, ()):
                self.post(posting._replace(last=False))
            for window in held.windows:
                account = self.accounts[window]
                account.reserved -= held.rest
                if id not in known and account.hard:
                    account.spent += held.rest
                    account.entries += held.rest
                    held.charged[window] = held.rest
            held.rest = 0
            held.state = "expired"
        return len(due)
