"""A caller's hanging up becomes an exception, in the block and only there."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import ClientGone
from gateway.presence import Hangup, Presence


def hangup() -> Hangup:
    return Hangup(lambda: None)


async def test_hanging_up_ends_the_block_and_leaves_the_task_uncancelled() -> None:
    caller = hangup()
    asyncio.get_running_loop().call_later(0.01, caller.fire)
    with pytest.raises(ClientGone), Presence(caller, lambda: 0):
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_hanging_up_twice_is_hanging_up_once() -> None:
    caller = hangup()
    for _ in range(2):
        asyncio.get_running_loop().call_soon(caller.fire)
    with pytest.raises(ClientGone), Presence(caller, lambda: 0):
        await asyncio.sleep(5)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_who_has_gone_before_is_not_waited_for() -> None:
    caller = hangup()
    caller.fire()
    with pytest.raises(ClientGone), Presence(caller, lambda: 0):
        raise AssertionError("the block was entered")


async def test_after_the_block_hanging_up_is_nobodys_concern() -> None:
    caller = hangup()
    with Presence(caller, lambda: 0):
        await asyncio.sleep(0)
    caller.fire()
    await asyncio.sleep(0.01)
    assert caller.gone


async def test_a_cancellation_from_outside_stays_one() -> None:
    caller = hangup()
    seen: list[BaseException] = []

    async def work() -> None:
        try:
            with Presence(caller, lambda: 0):
                await asyncio.sleep(5)
        except BaseException as error:
            seen.append(error)
            raise

    for both in (False, True):
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        if both:
            caller.fire()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(seen.pop(), asyncio.CancelledError)


async def test_an_error_of_the_block_is_not_hidden() -> None:
    async def clumsy() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise ValueError("ours") from None

    caller = hangup()
    asyncio.get_running_loop().call_soon(caller.fire)
    with pytest.raises(ValueError, match="ours"), Presence(caller, lambda: 0):
        await clumsy()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_within_its_grace_the_block_goes_on_and_then_says_that_nobody_listened() -> None:
    caller = hangup()
    asyncio.get_running_loop().call_soon(caller.fire)
    done = asyncio.create_task(asyncio.sleep(0.02, "done"))
    with pytest.raises(ClientGone), Presence(caller, lambda: 1):
        await done
    assert done.result() == "done"


async def test_when_its_grace_is_over_the_block_ends() -> None:
    caller = hangup()
    asyncio.get_running_loop().call_soon(caller.fire)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ClientGone), Presence(caller, lambda: 0.05):
        await asyncio.sleep(5)
    assert 0.04 < asyncio.get_running_loop().time() - began < 1
