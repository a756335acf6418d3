"""Stores in the background: together, in order, within bounds, and left alone while Redis is full."""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.cache.remote.counts import Counts
from penstock.cache.remote.lane import Lane
from penstock.cache.remote.outbox import FULL_BYTES, FULL_KEYS, REFUSED_S, ROOMY_S, Outbox, Room
from penstock.cache.remote.press import LARGE_BYTES, Press
from penstock.cache.remote.state import State, Watch
from penstock.cache.remote.value import Values

from ..support.scripted import Clock, on_uvloop, until


class Far:
    """An outbox and what came out of it."""

    def __init__(self, count: int = 1000, size_bytes: int = 1 << 30) -> None:
        self.sent: list[list[tuple[bytes, bytes, int]]] = []
        self.refuses = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.clock = Clock()
        self.counts = Counts()
        self.room = Room(count, size_bytes)
        self.watch = Watch(logging.getLogger("test"), "here", None)
        loop = asyncio.get_running_loop()
        self.press = Press(loop, 1 << 30, 1 << 30)
        self.lane = Lane(
            self._ask,
            b"probe",
            flying=1,
            deadline_s=1,
            loop=loop,
            clock=self.clock,
            counts=self.counts,
            watch=self.watch,
        )
        self.outbox = Outbox(
            self._store,
            self.lane,
            room=self.room,
            press=self.press,
            loop=loop,
            clock=self.clock,
            counts=self.counts,
            watch=self.watch,
        )

    async def _ask(self, names: Sequence[bytes], lease: bool) -> Sequence[bytes | None]:
        raise AssertionError("nobody looks anything up")

    async def _store(self, names: Sequence[bytes], words: Sequence[bytes | int]) -> int:
        pairs = list(zip(names, words[::2], words[1::2], strict=True))
        self.sent.append([(name, bytes(value), int(ms)) for name, value, ms in pairs])  # type: ignore[arg-type]
        await self.gate.wait()
        if self.error:
            raise self.error
        return self.refuses

    async def all_sent(self, count: int) -> None:
        await until(lambda: sum(map(len, self.sent)) >= count and not self.outbox._task)

    async def close(self) -> None:
        await self.outbox.close(1)
        await self.lane.close()
        self.press.close()


def _plain(packed: bytes) -> bytes:
    return Values(1 << 30, 1 << 30).wrap(packed)


@on_uvloop
async def test_what_is_put_within_a_moment_is_one_command_in_order() -> None:
    far = Far()
    for i in range(20):
        assert far.outbox.put(b"name", b"%d" % i, i + 1)
    far.outbox.about_lease(b"name", 0)
    await far.all_sent(21)
    assert far.sent == [[(b"name", _plain(b"%d" % i), i + 1) for i in range(20)] + [(b"name", b"", 0)]]
    assert (far.counts.stored, far.counts.stored_bytes) == (
        20,
        sum(len(_plain(b"%d" % i)) for i in range(20)),
    )
    await far.close()


@on_uvloop
async def test_a_command_is_bounded_in_keys_and_in_bytes() -> None:
    far = Far()
    for i in range(3 * FULL_KEYS):
        far.outbox.put(b"%d" % i, b"x", 1)
    await far.all_sent(3 * FULL_KEYS)
    assert [len(command) for command in far.sent] == [FULL_KEYS] * 3
    far.sent.clear()
    for i in range(5):
        far.outbox.put(b"%d" % i, bytes(FULL_BYTES // 2), 1)
    await far.all_sent(5)
    assert [len(command) for command in far.sent] == [2, 2, 1]
    await far.close()


@on_uvloop
async def test_a_large_value_goes_through_the_thread_and_keeps_its_place() -> None:
    far = Far()
    large = os.urandom(2 * LARGE_BYTES)
    far.outbox.put(b"a", b"small", 1)
    far.outbox.put(b"a", large, 2)
    far.outbox.put(b"a", b"last", 3)
    await far.all_sent(3)
    assert [value for command in far.sent for _, value, _ in command] == [
        _plain(b"small"),
        _plain(large),
        _plain(b"last"),
    ]
    await far.close()


@pytest.mark.parametrize(("count", "size_bytes"), [(10, 1 << 30), (1000, 1000)])
@on_uvloop
async def test_what_finds_no_room_is_dropped_and_room_comes_back(count: int, size_bytes: int) -> None:
    far = Far(count, size_bytes)
    assert [far.outbox.put(b"%d" % i, bytes(100), 1) for i in range(15)] == [True] * 10 + [False] * 5
    await far.all_sent(10)
    assert (far.room.left, far.room.bytes_left) == (count, size_bytes)
    assert far.outbox.put(b"again", bytes(100), 1)
    await far.close()
    assert far.counts.stored == 11


@on_uvloop
async def test_an_error_drops_one_command_and_gives_its_room_back() -> None:
    far = Far()
    far.error = RuntimeError("whatever")
    far.outbox.put(b"a", b"x", 1)
    far.outbox.put(b"b", b"x", 1)
    await far.all_sent(2)
    assert (far.counts.errors, far.counts.dropped, far.counts.stored) == (1, 2, 0)
    assert far.room.left == 1000
    far.error = None
    far.outbox.put(b"c", b"x", 1)
    await far.close()
    assert far.counts.stored == 1


@on_uvloop
async def test_nothing_is_queued_or_sent_while_the_breaker_is_open() -> None:
    far = Far()
    far.outbox.put(b"a", b"x", 1)
    far.lane.breaker.trip(0.0)
    assert not far.outbox.put(b"b", b"x", 1)
    await until(lambda: far.counts.dropped == 1)
    assert far.sent == []
    assert far.room.left == 1000
    await far.close()


@on_uvloop
async def test_a_full_redis_is_left_alone_for_a_while_and_leases_are_still_freed() -> None:
    far = Far()
    far.refuses = 1
    far.outbox.put(b"a", b"x", 1)
    far.outbox.put(b"b", b"x", 1)
    await far.all_sent(2)
    assert (far.counts.refused, far.counts.stored, far.watch.state) == (1, 1, State.FULL)
    assert not far.outbox.put(b"c", b"x", 1)
    assert far.outbox.about_lease(b"c", 0)
    await far.all_sent(3)
    assert far.watch.state is State.FULL, "a lease is no proof"
    far.refuses = 0
    far.clock.now += REFUSED_S
    assert far.outbox.put(b"d", b"x", 1)
    await far.all_sent(4)
    assert far.watch.state is State.FULL, "it may be full again in a moment"
    far.clock.now += ROOMY_S
    assert far.outbox.put(b"e", b"x", 1)
    await far.all_sent(5)
    assert far.watch.state is State.UP
    await far.close()


@on_uvloop
async def test_closing_sends_what_is_left_but_does_not_wait_for_ever() -> None:
    far = Far()
    far.gate.clear()
    for i in range(FULL_KEYS + 1):
        far.outbox.put(b"%d" % i, b"x", 1)
    await far.outbox.close(0.01)
    assert [len(command) for command in far.sent] == [FULL_KEYS]
    assert far.counts.stored == 0
    await far.lane.close()
    far.press.close()


@pytest.mark.parametrize("odd", [-1, 2, [], {}, None, b"0", "0"])
@on_uvloop
async def test_an_answer_that_no_redis_gives_is_an_error_and_counts_nothing_as_stored(odd: Any) -> None:
    far = Far()
    far.refuses = odd
    assert far.outbox.put(b"a", b"one", 1000)
    await far.all_sent(1)
    assert (far.counts.errors, far.counts.dropped) == (1, 1)
    assert (far.counts.stored, far.counts.stored_bytes, far.counts.refused) == (0, 0, 0)
    await far.close()
