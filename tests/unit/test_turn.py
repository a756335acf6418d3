"""Work at the end of the loop's turn: in order, before what comes later, whatever it raises."""

import asyncio

import pytest

from penstock.gateway.turn import Turn


async def test_work_is_done_in_order_and_before_what_is_called_later() -> None:
    loop = asyncio.get_running_loop()
    turn, done = Turn(loop), []
    turn.add(done.append, 1)
    loop.call_soon(done.append, "later")
    turn.add(done.append, 2)
    assert done == []
    await asyncio.sleep(0)
    assert done == [1, 2, "later"]


async def test_work_that_makes_work_has_it_done_in_the_next_turn() -> None:
    turn, done = Turn(asyncio.get_running_loop()), []
    turn.add(lambda: turn.add(done.append, "more"))
    await asyncio.sleep(0)
    assert done == []
    await asyncio.sleep(0)
    assert done == ["more"]


async def test_work_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    turn, done = Turn(asyncio.get_running_loop()), []

    def fails() -> None:
        raise ValueError("no")

    turn.add(fails)
    turn.add(done.append, 1)
    await asyncio.sleep(0)
    assert done == [1]
    assert "turn_failed function=" in caplog.text


async def test_it_can_be_done_at_once_and_then_only_once() -> None:
    turn, done = Turn(asyncio.get_running_loop()), []
    turn.add(done.append, 1)
    turn.finish()
    assert done == [1]
    await asyncio.sleep(0)
    assert done == [1]
