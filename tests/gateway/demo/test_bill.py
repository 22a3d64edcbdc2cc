"""The simulator's bill."""

from gateway.demo.bill import PRICES, Bill, Charge


def test_a_charge_is_priced_in_pico_usd_and_rounded_up_once() -> None:
    assert Charge("sim-small", "chat", 10, 0, 12).cost() == (10 * 150_000 + 12 * 600_000) // 1000
    assert Charge("sim-small", "chat", 10, 4, 12).cost() == (6 * 150_000 + 4 * 75_000 + 12 * 600_000) // 1000
    assert Charge("sim-free", "chat", 10, 0, 12).cost() == 0
    PRICES["odd"] = PRICES["sim-free"]._replace(input=1)
    try:
        assert Charge("odd", "chat", 1).cost() == 1
        assert Charge("odd", "chat", 1001).cost() == 2
        assert Charge("odd", "chat", 1000).cost() == 1
    finally:
        del PRICES["odd"]


def test_hidden_reasoning_is_part_of_a_broken_answer_from_its_first_visible_token() -> None:
    whole = Charge("sim-reason", "chat", 5, 0, 100, 60)
    assert whole.part(0) == whole._replace(output=0, reasoning=0)
    assert whole.part(3) == whole._replace(output=63)


def test_totals_hold_only_what_is_billed() -> None:
    bill = Bill()
    charge = Charge("sim-small", "chat", 10, 0, 12)
    bill.complete("a", "attempt", charge)
    bill.abandoned("b", None, charge.part(2))
    bill.free("c", None, charge, "reset")
    told = bill.plain()
    assert [(r["id"], r["complete"], r["billed"], r["nano_usd"], r["why"]) for r in told["rows"]] == [
        ("a", True, True, 8700, "completed"),
        ("b", False, True, 2700, "abandoned"),
        ("c", False, False, 0, "reset"),
    ]
    assert told["models"]["sim-small"] == {
        "requests": 3, "billed": 2, "input": 20, "cached": 0, "output": 14, "reasoning": 0, "nano_usd": 11400,
    }  # fmt: skip
    assert told["nano_usd"] == 11400


def test_rows_can_be_read_from_a_place_on_or_left_out() -> None:
    bill = Bill()
    for id in "abc":
        bill.complete(id, None, Charge("sim-free", "chat", 1))
    assert [row["id"] for row in bill.plain(after=2)["rows"]] == ["c"]
    assert bill.plain(rows=False)["rows"] == []
    assert bill.plain(rows=False)["count"] == 3
