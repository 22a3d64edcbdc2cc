"""Whatever is done to the books, in whatever order, they end as a list of calls says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.books_machine import Machine, StandingLoop


def followed(folder: Path, examples: int) -> None:
    """Raises where the books and the model differ."""
    loop = StandingLoop()
    machine = type("Machine", (Machine,), {"folder": folder, "loop": loop})
    chosen = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        run_state_machine_as_test(machine, settings=chosen)
    finally:
        loop.close()


@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.long)])
def test_the_books_do_what_the_model_does(examples: int, tmp_path: Path) -> None:
    followed(tmp_path, examples)
