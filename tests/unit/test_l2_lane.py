"""Look-ups of a tick in one command: what waits, what leaves, what a deadline ends."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import pytest

from penstock.cache.remote.counts import Counts
from penstock.cache.remote.lane import HEARD_S, NOTHING, WORTH, Lane
from penstock.cache.remote.scripts import MAX_KEYS
from penstock.cache.remote.state import State, Watch

from ..support.scripted import Clock, on_uvloop, until

MAX_FLYING = 3


class Far:
    """The other side of a lane: it answers when it is told to."""

    def __init__(self, deadline_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked: list[list[bytes]] = []
        self.replies: list[asyncio.Future[dict[bytes, bytes]]] = []
        self.probed = 0
        self.at_once = False
        self.counts = Counts()
        self.watch = Watch(logging.getLogger("test"), "here", "secret")
        self.lane = Lane(
            self._ask,
            b"probe",
            flying=MAX_FLYING,
            deadline_s=deadline_s,
            loop=asyncio.get_running_loop(),
            clock=clock,
            counts=self.counts,
            watch=self.watch,
        )

    async def _ask(self, names: Sequence[bytes], lease: bool) -> Sequence[bytes | None]:
        if not lease:
            self.probed += 1
            return [None]
        self.asked.append(list(names))
        if self.at_once:
            return [None] * len(names)
        reply: asyncio.Future[dict[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self.replies.append(reply)
        found = await reply
        return [found.get(name) for name in names]

    async def flying(self, count: int) -> None:
        await until(lambda: len(self.asked) >= count)


def _names(count: int, kind: bytes = b"k") -> list[bytes]:
    return [b"%s%d" % (kind, i) for i in range(count)]


@on_uvloop
async def test_what_is_asked_in_one_tick_leaves_together_and_a_name_once() -> None:
    far = Far()
    futures = [far.lane.look(name) for name in [*_names(10), *_names(10), b"k3"]]
    await far.flying(1)
    assert far.asked == [_names(10)]
    far.replies[0].set_result({b"k3": b"three"})
    found = await asyncio.gather(*futures)
    assert found[3] == found[13] == found[20] == b"three"
    assert found.count(NOTHING) == 18
    await far.lane.close()


@on_uvloop
async def test_a_lonely_look_up_beside_one_that_flies_waits_for_it() -> None:
    far = Far()
    first = far.lane.look(b"a")
    await far.flying(1)
    second = far.lane.look(b"b")
    for _ in range(10):
        await asyncio.sleep(0)
    third = far.lane.look(b"c")
    for _ in range(10):
        await asyncio.sleep(0)
    assert far.asked == [[b"a"]]
    far.replies[0].set_result({})
    assert await first == NOTHING
    await far.flying(2)
    assert far.asked[1] == [b"b", b"c"]
    far.replies[1].set_result({b"c": b"see"})
    assert await asyncio.gather(second, third) == [NOTHING, b"see"]
    await far.lane.close()


@on_uvloop
async def test_many_do_not_wait_and_no_more_fly_than_may() -> None:
    far = Far()
    for i in range(MAX_FLYING + 2):
        for name in _names(WORTH, b"%d-" % i):
            far.lane.look(name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await far.flying(MAX_FLYING)
    assert [len(names) for names in far.asked] == [WORTH] * MAX_FLYING
    far.replies[0].set_result({})
    await far.flying(MAX_FLYING + 1)
    assert len(far.asked[-1]) == 2 * WORTH, "what had to wait goes together"
    await far.lane.close()


@on_uvloop
async def test_a_batch_that_waits_leaves_when_enough_have_joined_it() -> None:
    far = Far()
    far.lane.look(b"a")
    await far.flying(1)
    far.lane.look(b"b")
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(far.asked) == 1
    for name in _names(WORTH - 1):
        far.lane.look(name)
    await far.flying(2)
    assert far.asked[1] == [b"b", *_names(WORTH - 1)]
    for name in _names(2 * MAX_KEYS):
        far.lane.look(name)
    await far.flying(3)
    assert len(far.asked[2]) == MAX_KEYS
    await far.lane.close()


@on_uvloop
async def test_one_alone_leaves_soon_though_another_hangs() -> None:
    far = Far(deadline_s=0.5)
    far.lane.look(b"a")
    await far.flying(1)
    far.lane.look(b"b")
    await far.flying(2)
    assert far.counts.timeouts == 0, "long before its deadline"
    await far.lane.close()


@on_uvloop
async def test_a_command_has_a_bounded_number_of_keys() -> None:
    far = Far()
    names = _names(2 * MAX_KEYS + 1)
    futures = [far.lane.look(name) for name in names]
    for sent in range(3):
        await far.flying(sent + 1)
        far.replies[sent].set_result({name: name for name in far.asked[sent]})
    assert [len(asked) for asked in far.asked] == [MAX_KEYS, MAX_KEYS, 1]
    assert await asyncio.gather(*futures) == names
    await far.lane.close()


@on_uvloop
async def test_the_deadline_ends_the_waiting_and_not_the_command() -> None:
    far = Far(deadline_s=0.02)
    futures = [far.lane.look(name) for name in (b"a", b"b", b"a")]
    assert await asyncio.gather(*futures) == [None, None, None]
    assert not far.replies[0].cancelled()
    far.replies[0].set_result({b"a": b"late"})
    await until(lambda: far.counts.late)
    assert (far.counts.timeouts, far.counts.errors) == (1, 0)
    await far.lane.close()


@on_uvloop
async def test_a_deadline_that_a_busy_process_saw_too_late_says_nothing_about_redis() -> None:
    clock = Clock()
    far = Far(deadline_s=0.002, clock=clock)

    async def overdue(late_s: float) -> None:
        future = far.lane.look(b"a")
        clock.now += 0.002 + late_s
        assert await future is None

    far.at_once = True
    while await far.lane.look(b"a") is None:  # this deadline is short
        assert not far.lane.breaker.open
    far.at_once = False
    for _ in range(20):
        await overdue(0.01)
    assert not far.lane.breaker.open, "Redis was heard a moment ago"
    clock.now += HEARD_S
    for _ in range(30):
        await overdue(0.01)
    assert far.lane.breaker.open, "it is silent"
    await far.lane.close()


@on_uvloop
async def test_what_could_not_leave_before_its_deadline_never_leaves() -> None:
    far = Far(deadline_s=0.2)
    for i in range(MAX_FLYING):
        for name in _names(WORTH, b"%d-" % i):
            far.lane.look(name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await far.flying(MAX_FLYING)
    waiting = far.lane.look(b"x")
    assert await waiting is None
    await until(lambda: far.counts.timeouts == MAX_FLYING + 1)
    for reply in far.replies:
        reply.set_result({})
    await until(lambda: far.counts.late == MAX_FLYING)
    assert len(far.asked) == MAX_FLYING
    await far.lane.close()


@on_uvloop
async def test_one_that_is_cancelled_disturbs_nobody() -> None:
    far = Far()
    first, same, other = far.lane.look(b"a"), far.lane.look(b"a"), far.lane.look(b"b")
    await far.flying(1)
    first.cancel()
    far.replies[0].set_result({b"a": b"A"})
    assert await asyncio.gather(same, other) == [b"A", NOTHING]
    assert not far.replies[0].cancelled()
    await far.lane.close()


@on_uvloop
async def test_an_error_is_an_unknown_answer_for_all_of_the_command() -> None:
    far = Far()
    futures = [far.lane.look(name) for name in (b"a", b"b", b"a")]
    await far.flying(1)
    far.replies[0].set_exception(RuntimeError("whatever"))
    assert await asyncio.gather(*futures) == [None] * 3
    assert far.counts.errors == 1
    assert await _answered(far, b"c") == b"C"
    await far.lane.close()


async def _answered(far: Far, name: bytes) -> bytes | None:
    future = far.lane.look(name)
    await far.flying(len(far.asked) + 1)
    far.replies[-1].set_result({name: name.upper()})
    return await future


@on_uvloop
async def test_failures_open_the_breaker_and_a_probe_that_is_no_look_up_closes_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    far = Far()
    while not far.lane.breaker.open:
        future = far.lane.look(b"a")
        await far.flying(1)
        far.replies.pop().set_exception(RuntimeError("the secret is out"))
        far.asked.clear()
        assert await future is None
    assert far.watch.state is State.DOWN
    await until(lambda: far.watch.state is State.UP)
    assert (far.probed, far.asked) == (2, [])
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split()[0] for message in messages] == ["l2_down", "l2_up"]
    assert "RuntimeError: the *** is out" in messages[0]
    await far.lane.close()


@on_uvloop
async def test_closing_at_once_answers_everybody() -> None:
    far = Far()
    futures = [far.lane.look(b"a")]
    far.lane._depart()
    await far.lane.close()  # before the command could begin
    assert await asyncio.gather(*futures) == [None]
    assert far.asked == []


@on_uvloop
async def test_closing_answers_everybody() -> None:
    far = Far()
    futures = [far.lane.look(b"a")]
    await far.flying(1)
    futures.append(far.lane.look(b"b"))
    await far.lane.close()
    assert await asyncio.gather(*futures) == [None, None]
