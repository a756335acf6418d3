"""Look-ups in one part of Redis: those of one loop tick go together in one command.

A part is a hash tag in a Cluster, and everything elsewhere. Strategy, in the order of a look-up's life:

* it joins the open batch; a key that is there already is asked once, for both
* the batch leaves at the end of the tick when no other is on its way. Otherwise it waits a little for that one and
  collects, because what redis-py costs is per command: until it is worth a command of its own, or old
* it has one timer: when the deadline passes its waiters get None. The command itself is never cancelled, for redis-py
  drops its connection then; a reply that comes late is read and thrown away
* failures open the breaker; then nothing is asked, and a probe of our own, no request's look-up, finds out when to
  begin again

It refuses to know what a value means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from .breaker import Breaker
from .counts import Counts
from .scripts import MAX_KEYS
from .state import Watch

Ask = Callable[[Sequence[bytes], bool], Awaitable[Sequence["bytes | None"]]]
"""(names, whether to take leases for absent ones) -> as many values; raises whatever goes wrong."""

WORTH = 32  # keys that are worth a command beside another one
HURRY = 0.2  # part of the deadline after which any batch is

BUSY = 0.2  # of a deadline that this process came too late to see it pass: then it says nothing about Redis,
HEARD_S = 1.0  # if Redis said anything so lately
GRACE_TURNS = 3  # of the loop, from a reply in the socket's buffer to whoever waits for it

NOTHING = b""
"""A look-up's result for a name that holds nothing, or nothing of ours."""


class _Batch:
    __slots__ = ("due_s", "late", "more", "timer", "waiters")

    def __init__(self, due_s: float) -> None:
        self.due_s = due_s
        self.waiters: dict[bytes, asyncio.Future[bytes | None]] = {}
        self.more: list[tuple[bytes, asyncio.Future[bytes | None]]] = []  # of names asked for again
        self.late = False
        self.timer: asyncio.TimerHandle | None = None


class Lane:
    """One part. ``probe`` is a name in it that holds nothing; ``flying`` commands may be on their way at once."""

    def __init__(
        self,
        ask: Ask,
        probe: bytes,
        *,
        flying: int,
        deadline_s: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        counts: Counts,
        watch: Watch,
    ) -> None:
        self.breaker = Breaker()
        self._ask = ask
        self._probe_name = probe
        self._max_flying = flying
        self._deadline_s = deadline_s
        self._loop = loop
        self._clock = clock
        self._counts = counts
        self._watch = watch
        self._open: _Batch | None = None
        self._ready: deque[_Batch] = deque()
        self._flying: set[_Batch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None
        self._heard_s = float("-inf")
        self._closed = False

    def look(self, name: bytes) -> asyncio.Future[bytes | None]:
        """The value under a name, NOTHING, or None when that was not to be learned in time.

        Not to be called while the breaker is open. The future may be cancelled.
        """
        batch = self._open
        if batch is None:
            batch = self._open = _Batch(self._clock() + self._deadline_s)
            batch.timer = self._loop.call_later(self._deadline_s, self._overdue, batch, GRACE_TURNS)
            self._loop.call_soon(self._tick)
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if batch.waiters.setdefault(name, future) is not future:
            batch.more.append((name, future))
            return future
        count = len(batch.waiters)
        if count == WORTH:  # it may have been left to wait in an earlier tick
            self._loop.call_soon(self._depart)
        elif count >= MAX_KEYS:
            self._open = None
            self._ready.append(batch)
            self._loop.call_soon(self._depart)
        return future

    def start(self) -> None:
        """Connect in the background; the breaker opens at once when that fails."""
        self._start(self._greet())

    async def close(self) -> None:
        """End every command; who still waits gets None."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch in (*self._flying, *self._ready, *([self._open] if self._open else [])):
            _settle(batch, ())  # those that fly too: a task that never began cannot do it itself
        self._flying.clear()
        self._ready.clear()
        self._open = None

    def _tick(self) -> None:
        self._depart()
        if self._open is not None:
            self._loop.call_later(self._deadline_s * HURRY, self._hurry, self._open)

    def _hurry(self, batch: _Batch) -> None:
        if batch is self._open:
            self._depart(hurry=True)

    def _depart(self, hurry: bool = False) -> None:
        """Send what may leave now."""
        while len(self._flying) < self._max_flying and not self._closed:
            if self._ready:
                self._fly(self._ready.popleft())
                continue
            batch = self._open
            if batch is None or not (hurry or not self._flying or len(batch.waiters) >= WORTH):
                return
            self._open = None
            self._fly(batch)

    def failed(self, error: BaseException | None) -> None:
        """Something was not answered: an error, or None for a passed deadline."""
        if self.breaker.failed(self._clock()):
            self._went_down(error)

    def _fly(self, batch: _Batch) -> None:
        if batch.late:
            return
        self._flying.add(batch)
        self._start(self._command(batch))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _command(self, batch: _Batch) -> None:
        values: Sequence[bytes | None] = ()
        try:
            self._counts.commands += 1
            values = await self._ask(list(batch.waiters), True)
        except Exception as error:  # whatever redis-py raises: a look-up is a miss, and its batch has an end
            self._counts.errors += 1
            if not batch.late:
                self.failed(error)
        else:
            self._heard_s = self._clock()
            if batch.late:
                self._counts.late += 1
            else:
                self.breaker.succeeded()
        finally:
            self._flying.discard(batch)
            _settle(batch, values)
        self._depart()

    def _overdue(self, batch: _Batch, turns: int) -> None:
        """The deadline is over. A reply that has come while this process was busy is still taken."""
        if batch.timer is None:
            return  # it has
        if turns and batch is not self._open:
            self._loop.call_soon(self._overdue, batch, turns - 1)
            return
        batch.late = True
        if batch is self._open:
            self._open = None
        self._counts.timeouts += 1
        now_s = self._clock()
        busy = now_s - batch.due_s > self._deadline_s * BUSY
        if not (busy and now_s - self._heard_s < HEARD_S):
            self.failed(None)
        _settle(batch, ())

    def _went_down(self, error: BaseException | None) -> None:
        self._watch.went_down(error)
        self._probe_later()

    def _probe_later(self) -> None:
        if not self._closed:
            self._probing = self._loop.call_later(self.breaker.delay_s, lambda: self._start(self._probe()))

    async def _greet(self) -> None:
        try:
            await self._ask([self._probe_name], False)
        except Exception as error:  # whatever redis-py raises
            self._counts.errors += 1
            if self.breaker.trip(self._clock()):
                self._went_down(error)

    async def _probe(self) -> None:
        """Two questions: the first may have to connect, the second must be answered as a look-up must."""
        ok = False
        try:
            await self._ask([self._probe_name], False)
            asked = self._clock()
            await self._ask([self._probe_name], False)
            ok = self._clock() - asked <= self._deadline_s
        except Exception:  # what it was is in the log since the breaker opened
            self._counts.errors += 1
        if self.breaker.probed(ok, self._clock()):
            self._watch.came_up()
        else:
            self._probe_later()


def _settle(batch: _Batch, values: Sequence[bytes | None]) -> None:
    """Wake everybody who still waits: with a value each, or without values with None."""
    if batch.timer is not None:
        batch.timer.cancel()
        batch.timer = None
    if not values:
        for future in batch.waiters.values():
            if not future.done():
                future.set_result(None)
        for _, future in batch.more:
            if not future.done():
                future.set_result(None)
        return
    for future, value in zip(batch.waiters.values(), values, strict=False):
        if not future.done():
            future.set_result(NOTHING if value is None else value)
    if batch.more:
        found = dict(zip(batch.waiters, values, strict=False))
        for name, future in batch.more:
            if not future.done():
                value = found[name]
                future.set_result(NOTHING if value is None else value)
