"""Leases that are kept up while an answer is made."""

import asyncio

from penstock.cache.remote.holds import LONGEST_S, Holds

from ..support.scripted import Clock, on_uvloop, until


@on_uvloop
async def test_what_is_held_is_prolonged_until_it_is_dropped_and_nothing_runs_then() -> None:
    prolonged: list[bytes] = []
    holds = Holds(prolonged.append, 0.001, loop=asyncio.get_running_loop(), clock=Clock())
    holds.add(b"a")
    holds.add(b"b")
    await until(lambda: prolonged.count(b"a") >= 3 and prolonged.count(b"b") >= 3)
    holds.drop(b"a")
    prolonged.clear()
    await until(lambda: prolonged.count(b"b") >= 3)
    assert b"a" not in prolonged
    holds.drop(b"b")
    holds.drop(b"never held")
    await until(lambda: holds._timer is None)
    prolonged.clear()
    holds.add(b"c")
    await until(lambda: prolonged)
    assert set(prolonged) == {b"c"}
    holds.close()
    assert len(holds) == 0


@on_uvloop
async def test_what_is_held_too_long_is_forgotten() -> None:
    clock = Clock()
    prolonged: list[bytes] = []
    holds = Holds(prolonged.append, 0.001, loop=asyncio.get_running_loop(), clock=clock)
    holds.add(b"forgotten")
    await until(lambda: prolonged)
    clock.now += LONGEST_S + 1
    holds.add(b"new")
    prolonged.clear()
    await until(lambda: len(prolonged) >= 3)
    assert set(prolonged) == {b"new"}
    holds.close()
