"""What all tests share: which event loops a module's tests run on, and how hard Hypothesis looks."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
from hypothesis import Phase, settings


def pytest_asyncio_loop_factories(item: pytest.Function) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A module that says LOOPS is run once on each of them; all others on asyncio's own."""
    return getattr(item.module, "LOOPS", {"asyncio": asyncio.new_event_loop})


settings.register_profile("unshrunk", phases=[Phase.generate])  # for those who only ask whether something is found
