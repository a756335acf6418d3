"""What is to be stored in one part of Redis, in the background: nobody waits for a write.

Strategy: a queue, and a task while there is something in it. The task takes many at once, one command for all of them,
one command after the other, so what is asked of one key stays in order. A queue that has just begun to fill is
left alone for a moment: a command costs far more than a value in it. Room is bounded, for all parts together, in
count and bytes; what finds none is dropped and counted. When Redis says that its memory is full, nothing is stored
for a second, then tried again.

It refuses to know what a value means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from .counts import Counts
from .lane import Lane
from .press import Press
from .state import Watch

Store = Callable[[Sequence[bytes], Sequence["bytes | int"]], Awaitable[int]]
"""(names, value and milliseconds of each) -> how many were refused for want of memory; raises what goes wrong."""

LINGER_S = 0.005
FULL_KEYS = 64  # in one command
FULL_BYTES = 1 << 20
REFUSED_S = 1.0  # nothing is stored for so long after a refusal
ROOMY_S = 3.0  # nothing was refused for so long: the memory counts as no longer full


class Room:
    """How much may wait, in all outboxes of a process."""

    __slots__ = ("bytes_left", "left")

    def __init__(self, count: int, size_bytes: int) -> None:
        self.left = count
        self.bytes_left = size_bytes

    def take(self, size: int) -> bool:
        """Whether there is room for one more of ``size`` bytes; it is taken then."""
        if self.left <= 0 or self.bytes_left < size:
            return False
        self.left -= 1
        self.bytes_left -= size
        return True

    def free(self, size: int) -> None:
        """One of ``size`` bytes is gone."""
        self.left += 1
        self.bytes_left += size


class Outbox:
    """One part's. ``about_lease`` and ``put`` return at once."""

    def __init__(
        self,
        store: Store,
        lane: Lane,
        *,
        room: Room,
        press: Press,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        counts: Counts,
        watch: Watch,
    ) -> None:
        self._store = store
        self._lane = lane
        self._room = room
        self._press = press
        self._loop = loop
        self._clock = clock
        self._counts = counts
        self._watch = watch
        self._queue: deque[tuple[bytes, bytes, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._refused_at = 0.0

    def put(self, name: bytes, packed: bytes, ms: int) -> bool:
        """Store an entry for ``ms``. False when it is not taken."""
        if self._full and self._clock() - self._refused_at < REFUSED_S:
            return False
        return self._add(name, packed, ms)

    def about_lease(self, name: bytes, ms: int) -> bool:
        """Prolong our lease to ``ms`` from now, or free it with 0. False when that is not taken."""
        return self._add(name, b"", ms)

    async def close(self, grace_s: float) -> None:
        """Send what is left, for at most ``grace_s``."""
        if self._timer is not None:
            self._timer.cancel()
            self._begin()
        task = self._task
        if task is not None:
            await asyncio.wait([task], timeout=grace_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _add(self, name: bytes, packed: bytes, ms: int) -> bool:
        if self._lane.breaker.open or not self._room.take(len(packed)):
            return False
        queue = self._queue
        queue.append((name, packed, ms))
        if self._task is None:
            if self._timer is None:
                self._timer = self._loop.call_later(LINGER_S, self._begin)
            elif len(queue) == FULL_KEYS:
                self._timer.cancel()
                self._begin()
        return True

    def _begin(self) -> None:
        self._timer = None
        self._task = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                await self._send()
        finally:
            self._task = None

    async def _send(self) -> None:
        """One command."""
        names: list[bytes] = []
        words: list[bytes | int] = []
        taken: list[int] = []
        size = stores = 0
        queue = self._queue
        try:
            while queue and len(names) < FULL_KEYS and size < FULL_BYTES:
                name, packed, ms = queue.popleft()
                taken.append(len(packed))
                value = packed
                if packed:
                    stores += 1
                    value = await self._press.wrap(packed)
                    size += len(value)
                names.append(name)
                words.append(value)
                words.append(ms)
            if self._lane.breaker.open:
                self._counts.dropped += stores
                return
            refused = await self._store(names, words)
            if not (isinstance(refused, int) and 0 <= refused <= stores):
                raise ValueError("that is no answer of a Redis")
        except Exception as error:  # whatever redis-py raises: nobody waits for it
            self._counts.errors += 1
            self._counts.dropped += stores
            self._lane.failed(error)
        else:
            self._stored(stores, size, refused)
        finally:
            for n in taken:
                self._room.free(n)

    def _stored(self, stores: int, size: int, refused: int) -> None:
        counts = self._counts
        if refused:
            counts.refused += refused
            counts.stored += stores - refused
            self._refused_at = self._clock()
            if not self._full:
                self._full = True
                self._watch.filled()
            return
        counts.stored += stores
        counts.stored_bytes += size
        if self._full and stores and self._clock() - self._refused_at >= ROOMY_S:
            self._full = False
            self._watch.emptied()
