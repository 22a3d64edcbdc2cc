"""Defects to be planted in what keeps money, limits and shared answers, each with the test that must find it.

A name says what the product would do wrong: (file, what stands there, what stands there in its place, the test, below
tests/).  What stands there must be there exactly once.
"""

from __future__ import annotations

from typing import NamedTuple


class Defect(NamedTuple):
    file: str
    old: str
    new: str
    test: str


_BOOKS = "gateway/books.py"
_LEASES = "gateway/leases.py"
_JOURNAL = "gateway/journal.py"
_BOUNDS = "gateway/bounds.py"
_BUDGET = "policies/budget.py"
_LIMIT = "policies/rate_limit.py"
_MEMORY = "gateway/counters/memory.py"
_STORE = "gateway/answers/valkey.py"

_T_BOOKS = "gateway/test_books.py::test_"
_T_CRASH = "gateway/test_books_crash.py::test_"
_T_JOURNAL = "gateway/test_journal.py::test_"
_T_BOUNDS = "gateway/test_bounds.py::test_"
_T_BUDGET = "policies/test_budget.py::test_"
_T_LIMIT = "policies/test_rate_limit.py::test_"
_T_REPEATS = "gateway/test_repeats_shared.py::test_"
_T_IDENTITY = "policies/test_cache_identity.py::test_"
_T_COUNTERS = "contract/test_counters_contract.py::test_"
_MODEL = "gateway/test_books_model.py::test_the_books_do_what_the_model_does"
_KILL = _T_BOOKS + "after_a_kill_what_was_settled_is_charged_and_what_was_open_is_charged_in_full"
_EXACTLY = _T_BOOKS + "exactly_as_many_calls_are_admitted_as_the_budget_can_pay"

PLANTED = {
    # the life of a call
    "a cancelled call that is not settled": Defect("gateway/pipeline.py", "self.settle(x, receipts)  # this attempt's receipts, not the next one's", "isinstance(sys.exception(), asyncio.CancelledError) or self.settle(x, receipts)", _T_BUDGET + "no_ending_leaves_a_hold"),  # noqa: E501
    "a cap that is not sent": Defect("gateway/upstream.py", "if (tokens := self._attempt.cap) is not None:", "if (tokens := None) is not None:", _T_BUDGET + "shrinking_lowers_the_calls_own_cap_and_tells_the_caller"),  # noqa: E501
    # books
    "a report that counts twice": Defect(_BOOKS, "        if hold.reported:\n            return\n", "        self.holds[hold.id] = hold\n", _MODEL),  # noqa: E501
    "a call that leaves before its hold is journalled": Defect(_BOOKS, "self._journal.hold(hold.id, amount, kept, hold.note)", "pass", _KILL),  # noqa: E501
    "a hold that takes nothing from its lease": Defect(_BOOKS, "                lease.free -= amount\n", "", _EXACTLY),
    "a bill of nothing that keeps its hold": Defect(_BOOKS, "cost = hold.cost or 0\n    return", "cost = hold.amount if hold.cost is None else hold.cost\n    return", _T_BOOKS + "what_certainly_billed_nothing_is_given_back_whole"),  # noqa: E501
    "a report that is lost with the ledger": Defect(_BOOKS, "self._reports.extendleft(report for report in reversed(batch) if report not in done)", "pass", _T_BOOKS + "while_the_ledger_is_down_hard_budgets_spend_what_was_leased_and_refuse_the_rest_at_once"),  # noqa: E501
    "a key that may hold all of a shared budget": Defect(_BOOKS, "if held and held + amount > claim.most:", "if False:", _T_BOOKS + "one_key_cannot_hold_all_of_a_shared_budget"),  # noqa: E501
    "a frozen budget that admits": Defect(_BOOKS, "account is None or account.frozen or now", "account is None or now", _T_BOOKS + "a_frozen_budget_admits_nothing_until_it_thaws"),  # noqa: E501
    "a window that is over and still used": Defect(_BOOKS, "account.frozen or now >= account.ends or", "account.frozen or", _T_CRASH + "a_lease_of_a_day_that_is_over_pays_for_nothing_more"),  # noqa: E501
    "a window that is over and used by those who wait": Defect(_BOOKS, "lease.free < amount or now >= account.ends:", "lease.free < amount:", _T_CRASH + "a_lease_of_a_day_that_is_over_pays_for_nothing_more"),  # noqa: E501
    "a changed limit that is not seen": Defect(_BOOKS, "or account.budget != budget:", "or False:", _T_BOOKS + "a_limit_that_is_lowered_takes_back_what_was_leased"),  # noqa: E501
    "a stop that keeps its leases": Defect(_BOOKS, "await self._leases.give_all_back()", "pass", _T_BOOKS + "a_call_is_held_in_each_of_its_budgets_charged_what_it_cost_and_counted_once"),  # noqa: E501
    "a recovery that keeps the leases of the dead": Defect(_BOOKS, "                    await self.ledger.release(lease)\n", "                    pass\n", _KILL),  # noqa: E501
    "a recovery that forgets what the dead had spent": Defect(_BOOKS, "await self.ledger.post(left.postings[start : start + BATCH])", "pass", _KILL),  # noqa: E501
    "a soft budget that stops calls while the ledger is down": Defect(_BOOKS, 'if shortage.reason == "unavailable" and not account.budget.hard:', "if False:", _T_BOOKS + "while_the_ledger_is_down_hard_budgets_spend_what_was_leased_and_refuse_the_rest_at_once"),  # noqa: E501
    "a call in two budgets that counts twice": Defect(_BOOKS, "hold.note, False, number == 0)", "hold.note, False, True)", _T_BOOKS + "a_call_is_held_in_each_of_its_budgets_charged_what_it_cost_and_counted_once"),  # noqa: E501
    # leases
    "a lease that is larger here than in the ledger": Defect(_LEASES, "lease.free += found.amount", "lease.free += wanted + 1", _MODEL),  # noqa: E501
    "a lease that nobody uses and that is kept": Defect(_LEASES, "elif lease.lost or (not lease.open and now - lease.used > IDLE):", "elif lease.lost:", _T_BOOKS + "an_idle_lease_is_given_back"),  # noqa: E501
    "a lowered limit that keeps what was leased": Defect(_LEASES, "if lease is not None and lease.free:  # the same", "if False:  # the same", _T_BOOKS + "a_limit_that_is_lowered_takes_back_what_was_leased"),  # noqa: E501
    "a lease whose answer is late and that is taken for idle": Defect(_LEASES, "        self._all[lease.id] = lease\n        lease.asking = True\n", "        self._all[lease.id] = lease\n", _T_BOOKS + "what_was_granted_stays_held_although_the_answer_comes_late"),  # noqa: E501
    "a lost answer that is forgotten": Defect(_LEASES, "lease.asking = lease.doubted = True", "lease.asking = True", _MODEL),  # noqa: E501
    "a lease that no successor knows of": Defect(_LEASES, "self._journal.lease(lease.id)  # before", "pass  # before", _KILL),  # noqa: E501
    "a rest whose return failed and that stays reserved": Defect(_LEASES, "            lease.doubted = True\n            raise\n", "            raise\n", _T_CRASH + "what_was_being_given_back_when_the_ledger_went_away_is_not_lost_to_those_who_call"),  # noqa: E501
    # the journal
    "a call in doubt that is charged nothing": Defect(_JOURNAL, "amount = held if part.hard else 0", "amount = 0", _KILL),  # noqa: E501
    "a call in doubt that a lease's expiry pays back": Defect(_JOURNAL, 'held, note={**note, "in_doubt": True}', 'held, "expire", {**note, "in_doubt": True}', _T_CRASH + "a_call_in_doubt_stays_charged_although_its_lease_had_expired_before_the_kill"),  # noqa: E501
    "an end that is not journalled": Defect(_JOURNAL, 'line = self._try(("s", hold, amount, estimated))', 'line = b""', _T_JOURNAL + "what_was_settled_is_posted_as_it_was_and_what_was_open_as_it_was_held"),  # noqa: E501
    "a new file that forgets what is open": Defect(_JOURNAL, "yield from self._open.values()", "yield from ()", _T_JOURNAL + "a_long_life_does_not_make_a_long_file"),  # noqa: E501
    # bounds
    "a cap that is known and not written": Defect(_BOUNDS, "call.send = call.cap != own", "call.send = False", _T_BOUNDS + "the_answer_is_capped_by_the_caller_or_else_by_us"),  # noqa: E501
    "choices that are paid once": Defect(_BOUNDS, "return (self.cap + self.more) * self.choices", "return self.cap + self.more", _T_BOUNDS + "the_answer_is_capped_by_the_caller_or_else_by_us"),  # noqa: E501
    "a field that nobody knows and that passes": Defect(_BOUNDS, "if not known >= fields.keys():", "if False:", _T_BOUNDS + "what_has_no_bound_is_refused_by_name_with_its_mend"),  # noqa: E501
    "tools that are counted once": Defect(_BOUNDS, "call.input += memoryview(raw).nbytes + FOR_TOOLS + PER_TOOL * len(tools)", "pass", _T_BOUNDS + "tools_schemas_and_earlier_calls_count_twice"),  # noqa: E501
    # the policy of budgets
    "a free model that an empty budget stops": Defect(_BUDGET, "if rate is not None and rate.free:", "if False:", "policies/test_budget_paths.py::test_a_model_that_costs_nothing_answers_although_a_budget_is_exhausted"),  # noqa: E501
    "users who share one budget": Defect(_BUDGET, 'word = "" if scope.word is None else f" {scope.word}"', 'word = ""', _T_BUDGET + "a_user_who_has_spent_all_does_not_stop_another"),  # noqa: E501
    "a refusal of the provider that is charged": Defect(_BUDGET, "if not attempt.sent or attempt.free:", "if not attempt.sent:", _T_BUDGET + "the_ledger_equals_the_providers_bill_to_the_nano_dollar"),  # noqa: E501
    "an answer that broke off and is charged nothing": Defect(_BUDGET, "self._books.report(hold, hold.amount, estimated=True)", "self._books.report(hold, None)", _T_BUDGET + "an_outage_of_a_provider_that_bills_no_failures_eats_no_budget"),  # noqa: E501
    "a lowered cap that is told and not set": Defect(_BUDGET, "attempt.cap = most.cap", "pass", _T_BUDGET + "shrinking_lowers_the_calls_own_cap_and_tells_the_caller"),  # noqa: E501
    # limits of rates
    "a refused call that keeps what it took": Defect(_LIMIT, "used = [0 if isinstance(x.error, Denied) and not _sent(x) else 1]", "used = [1]", _T_LIMIT + "a_call_that_a_later_policy_refuses_gives_all_of_it_back"),  # noqa: E501
    "users who share one limit": Defect(_LIMIT, "Charge(key + x.user, amount", "Charge(key, amount", _T_LIMIT + "a_limit_holds_whom_it_names_and_nobody_else"),  # noqa: E501
    "tokens that nobody counted and that are free": Defect(_LIMIT, "return max(known, reserved) if unknown else known", "return known", _T_LIMIT + "a_call_whose_usage_nobody_knows_keeps_what_was_reserved"),  # noqa: E501
    # counters in memory
    "a window that forgets too early": Defect(_MEMORY, "< slot - SLOTS:\n                count.leave(slot - SLOTS)", "< slot - SLOTS + 2:\n                count.leave(slot - SLOTS + 2)", "gateway/counters/test_memory.py::test_a_burst_at_a_window_s_edge_gains_nothing"),  # noqa: E501
    "a refused call that takes what fitted": Defect(_MEMORY, "            if left < 0:\n", "            if left < 0 and not remaining:\n", _T_COUNTERS + "of_one_call_all_charges_are_taken_or_none"),  # noqa: E501
    "a place that is never free again": Defect(_MEMORY, "left = self._running[key] - amount", "left = self._running[key]", _T_COUNTERS + "a_place_among_the_running_is_free_when_the_call_is_over"),  # noqa: E501
    "what is used on top and not charged": Defect(_MEMORY, "elif really > amount:", "elif False:", _T_COUNTERS + "what_was_not_used_is_given_back_and_what_was_used_on_top_is_charged"),  # noqa: E501
    # shared answers
    "a claim that is not renewed": Defect(_STORE, "elif self._claims and time.monotonic() >= self._renewed + HELD / 3:", "elif False:", _T_REPEATS + "a_call_that_takes_longer_than_a_claim_lasts_keeps_it"),  # noqa: E501
    "a claim that anybody may end": Defect(_STORE, "if held and held ~= ARGV[1] then return held end", "if held and held ~= ARGV[1] and ARGV[2] ~= '0' then return held end", _T_REPEATS + "what_another_holds_is_neither_renewed_nor_ended"),  # noqa: E501
    "a claim that outlives its gateway": Defect(_STORE, "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", "redis.call('SET', KEYS[1], ARGV[1])", _T_REPEATS + "a_killed_gateway_frees_its_keys_by_expiry"),  # noqa: E501
    "a claim that is never let go": Defect("gateway/repeats.py", "        self._store.release(claim.question)\n", "", _T_REPEATS + "one_that_failed_or_whose_caller_hung_up_may_be_asked_at_another_gateway"),  # noqa: E501
    "a team made anew that is the old one": Defect("gateway/questions.py", 'team = f"{caller.team} {caller.born}"', "team = caller.team", _T_IDENTITY + "a_team_that_is_deleted_and_created_anew_reads_nothing_of_the_old_one"),  # noqa: E501
    "a forgetting that nobody else hears of": Defect("gateway/roster.py", 'row.action == "forget"', "False", "gateway/endpoints/test_cache.py::test_what_is_forgotten_at_one_gateway_is_soon_forgotten_by_all_that_share_its_database"),  # noqa: E501
    "a judge that no limit counts": Defect(_LIMIT, "    counts_inner = True\n", "", "policies/test_rate_limit_inner.py::test_its_tokens_count_for_the_team_it_is_made_for"),  # noqa: E501
    "a judge that a limit refuses": Defect(_LIMIT, "rule._replace(limit=_NEVER)", "rule", "policies/test_rate_limit_inner.py::test_a_call_that_was_admitted_is_not_refused_for_it_and_those_that_follow_wait"),  # noqa: E501
}  # fmt: skip
