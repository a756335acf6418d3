"""L2 and the tiers as the suite sees them, on a real Redis. Each run has names of its own in it.

Stores go to Redis in the background; before anything is looked up, and before another view stores, they are waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from random import Random
from typing import TypeVar

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import Entry, pack, read
from penstock.cache.epoch import Epochs, under
from penstock.cache.l1 import L1
from penstock.cache.l2 import L2, L2Settings, Lease
from penstock.cache.redis_client import RedisSettings
from penstock.cache.tiered import Tiers

from ..support.scripted import until
from .machine import MOST_BYTES
from .shared import SLOTS, Flusher, Lives
from .target import Found, Subject

T = TypeVar("T")

_runs = itertools.count()
_NO_L1 = ArenaGeometry.of(0, MOST_BYTES, SLOTS)

#: How long the tiers' near copy lives when nothing else is said.
NEAR_MS = 60_000


class Far:
    """Connections to one Redis, one for each view, in a loop of the suite's own. For one run."""

    def __init__(self, redis: RedisSettings, loop: asyncio.AbstractEventLoop, nodes: list[bytes]) -> None:
        self._loop = loop
        # No deadline is missed and no lease ends here: this suite is not about them.
        settings = L2Settings(redis, f"suite{next(_runs)}", deadline_ms=60_000, lease_ms=600_000)
        self.l2s = [
            L2(settings, node=node, loop=loop, clock=time.monotonic, random=Random(i))
            for i, node in enumerate(nodes)
        ]
        self._put = [0] * len(nodes)

    def wait(self, work: Coroutine[object, object, T]) -> T:
        """Run to its end, from outside the loop."""
        return self._loop.run_until_complete(work)

    def before_put(self, view: int) -> None:
        """A view is about to put something: what others put is to be there before."""
        for other in range(len(self.l2s)):
            if other != view:
                self._settle(other)
        self._put[view] += 1

    def settle(self) -> None:
        """Wait until all that was put is in Redis."""
        for view in range(len(self.l2s)):
            self._settle(view)

    def _settle(self, view: int) -> None:
        counts, put = self.l2s[view].counts, self._put[view]
        if counts.stored < put:
            self.wait(until(lambda: counts.stored >= put))

    def close(self) -> None:
        """Close every connection. Nothing was lost on the way."""
        self.settle()
        for l2 in self.l2s:
            self.wait(l2.close())
            assert (l2.counts.errors, l2.counts.timeouts, l2.counts.dropped) == (0, 0, 0)


class Remote:
    """L2 alone: two processes of one node, and one of another."""

    views = writers = latest = 3
    forgets = False
    removes = False

    def __init__(self, redis: RedisSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._far = Far(redis, loop, [b"a" * 16, b"a" * 16, b"b" * 16])
        self._arenas = [Arena.create(None, _NO_L1, 0) for _ in range(2)]
        self._epochs = [self._arenas[node].epochs for node in (0, 0, 1)]
        self._flush = Flusher(*(arena.epochs for arena in self._arenas))

    def ask(self, view: int, subject: Subject) -> object:
        return _stamp(self._epochs[view], subject)

    def put(self, view: int, subject: Subject, asked: object, now_ms: int, ttl_ms: int, value: bytes) -> bool:
        assert isinstance(asked, int)
        self._far.before_put(view)
        packed = pack(subject.key, asked, now_ms, now_ms + ttl_ms, value)
        return self._far.l2s[view].put(subject.key, packed, ttl_ms)

    def get(self, view: int, subject: Subject, now_ms: int) -> Found | None:
        self._far.settle()
        packed = self._far.wait(self._far.l2s[view].get(subject.key))
        if not isinstance(packed, bytes):
            return None
        return _found(read(packed, subject.key, _stamp(self._epochs[view], subject), now_ms))

    def remove(self, view: int, subject: Subject) -> None:
        raise AssertionError("entries of Redis are flushed")

    def flush(self, kind: str, subject: Subject) -> None:
        self._flush(kind, subject)

    def restart(self, view: int) -> None:
        """What a process had queued is lost with it; here nothing is."""

    def close(self) -> None:
        self._far.close()
        for arena in self._arenas:
            arena.close()


class Both:
    """The tiers: views 0 and 1 are workers of one node, view 2 is of another without L1, view 3 of one with L1."""

    views = 4
    writers = 2
    latest = 3
    removes = False

    def __init__(
        self, redis: RedisSettings, loop: asyncio.AbstractEventLoop, near: ArenaGeometry, *, forgets: bool
    ) -> None:
        self.forgets = forgets
        self._far = Far(redis, loop, [b"a" * 16, b"a" * 16, b"b" * 16, b"c" * 16])
        first, third, fourth = (Arena.create(None, geometry, 0) for geometry in (near, _NO_L1, near))
        self._arenas = [first, Arena.attach(first.fd), third, fourth]
        for arena in self._arenas:
            arena.epochs.mark_synced(True)
        self._lives = [Lives() for _ in self._arenas]
        self._lives[1] = self._lives[0]
        self._tiers = [self._tier(view) for view in range(self.views)]
        self._flush = Flusher(first.epochs, third.epochs, fourth.epochs)

    def ask(self, view: int, subject: Subject) -> object:
        return _stamp(self._arenas[view].epochs, subject)

    def put(self, view: int, subject: Subject, asked: object, now_ms: int, ttl_ms: int, value: bytes) -> bool:
        assert isinstance(asked, int)
        self._far.before_put(view)
        # The longest of the suite's lives is the tiers' own; the others are asked for.
        own = ttl_ms == self._tiers[view].l2_ttl_ms
        self._tiers[view].fill(
            subject.key, under(subject.key, asked), asked, now_ms, None if own else ttl_ms, value
        )
        return True

    def get(self, view: int, subject: Subject, now_ms: int) -> Found | None:
        self._far.settle()
        tiers = self._tiers[view]
        stamp = _stamp(self._arenas[view].epochs, subject)
        entry = tiers.near(subject.key, stamp, now_ms)
        if entry is None:
            assert tiers.reaches_far
            far = self._far.wait(_ask(tiers, subject.key, stamp, now_ms))
            entry = far if isinstance(far, Entry) else None
        return _found(entry)

    def remove(self, view: int, subject: Subject) -> None:
        raise AssertionError("entries of Redis are flushed")

    def flush(self, kind: str, subject: Subject) -> None:
        self._flush(kind, subject)

    def restart(self, view: int) -> None:
        self._tiers[view] = self._tier(view)

    def close(self) -> None:
        self._far.close()
        self._tiers.clear()
        for arena in reversed(self._arenas):
            arena.close()

    def _tier(self, view: int) -> Tiers:
        arena, lives = self._arenas[view], self._lives[view]
        l1 = L1(arena, lives.next(view), lives.alive) if arena.geometry.segments else None
        return Tiers(arena.epochs, l1, self._far.l2s[view], l1_ttl_ms=NEAR_MS, l2_ttl_ms=3_600_000)


def _stamp(epochs: Epochs, subject: Subject) -> int:
    return epochs.stamp(epochs.scope(subject.model, subject.tenant), subject.key)


async def _ask(tiers: Tiers, key: Key, stamp: int, now_ms: int) -> Entry | Lease:
    """As the gateway's pipeline asks."""
    asked = tiers.ask(under(key, stamp))
    if asked is None:
        return Lease.NONE
    value = await asked
    return tiers.leased(value) or await tiers.far(value, key, stamp, now_ms)


def _found(entry: Entry | None) -> Found | None:
    return None if entry is None else Found(entry.value, entry.created_ms, entry.expires_ms)
