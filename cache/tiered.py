"""The two layers as one: shared memory near, Redis far, the epochs over both.

What is found far is put near, for no longer than near entries live. What is new is put near at once and far in the
background. An entry that does not prove itself (:func:`penstock.cache.entry.read`) is none, wherever it came from.
Refuses to know what the values are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .digest import Key
from .entry import Entry, pack, read, with_expiry
from .epoch import Epochs, under
from .l1 import L1
from .l2 import L2, Lease


class Tiers:
    """L1 and L2, either of which may be missing. The lives, in milliseconds, may change at a reload.

    A ``name`` is what :func:`penstock.cache.epoch.under` makes of a key and its stamp.
    """

    __slots__ = ("_l1", "_l2", "ask", "epochs", "hold", "l1_ttl_ms", "l2_ttl_ms", "leased", "near")

    def __init__(
        self,
        epochs: Epochs,
        l1: L1 | None,
        l2: L2 | None,
        *,
        l1_ttl_ms: int,
        l2_ttl_ms: int = 0,
    ) -> None:
        self.epochs = epochs
        self.l1_ttl_ms = l1_ttl_ms
        self.l2_ttl_ms = l2_ttl_ms
        self._l1 = l1
        # Attributes, so that a request enters fewer frames.
        #: what shared memory holds for (key, stamp, now_ms)
        self.near: Callable[[Key, int, int], Entry | None] = l1.get if l1 is not None else _nothing
        #: look in Redis for a name; what comes is for `leased`, then for `far`. None when it is not asked
        self.ask: Callable[[Key], asyncio.Future[bytes | None] | None] = _not_asked if l2 is None else l2.ask
        #: whether this node may ask upstream, where Redis has no entry; else None
        self.leased: Callable[[bytes | None], Lease | None] = _not_leased if l2 is None else l2.leased
        #: this node asks upstream now: its lease of the name lasts until `fill` or `give_up`
        self.hold: Callable[[Key], None] = _not_held if l2 is None else l2.hold
        self._l2 = l2

    @property
    def reaches_far(self) -> bool:
        """Whether Redis may be asked: it answers, and this node knows what other nodes have flushed."""
        l2 = self._l2
        return l2 is not None and self.epochs.synced and l2.available

    async def far(self, value: bytes | None, key: Key, stamp: int, now_ms: int) -> Entry | Lease:
        """The entry in what Redis gave, put near as well."""
        assert self._l2 is not None
        found = await self._l2.unwrap(value)
        if isinstance(found, Lease):
            return found
        return self._found(found, key, stamp, now_ms) or Lease.NONE

    async def awaited(self, key: Key, stamp: int, now_ms: Callable[[], int], until_s: float) -> Entry | Lease:
        """What the node that has the lease stores; else who has the lease at ``until_s`` of L2's clock."""
        assert self._l2 is not None
        found = await self._l2.wait(under(key, stamp), until_s)
        if isinstance(found, Lease):
            return found
        return self._found(found, key, stamp, now_ms()) or Lease.NONE

    def _found(self, packed: bytes, key: Key, stamp: int, now_ms: int) -> Entry | None:
        entry = read(packed, key, stamp, now_ms)
        if entry is not None and self._l1 is not None:
            expires_ms = min(entry.expires_ms, now_ms + self.l1_ttl_ms)
            self._l1.put(key, with_expiry(packed, expires_ms), now_ms)
        return entry

    def fill(
        self, key: Key, name: Key, stamp: int, now_ms: int, ttl_ms: int | None, *value: bytes | bytearray
    ) -> None:
        """Put a new answer into both; ``ttl_ms`` instead of their own lives."""
        if self._l1 is not None:
            expires_ms = now_ms + (self.l1_ttl_ms if ttl_ms is None else ttl_ms)
            if not self._l1.put(key, pack(key, stamp, now_ms, expires_ms, *value), now_ms):
                self._l1.remove(key)  # an older answer must not outlive a newer one
        if self._l2 is None:
            return
        if self.reaches_far:
            ttl_ms = self.l2_ttl_ms if ttl_ms is None else ttl_ms
            self._l2.put(name, pack(key, stamp, now_ms, now_ms + ttl_ms, *value), ttl_ms)
        else:
            self._l2.give_up(name)

    def give_up(self, name: Key) -> None:
        """Let go of the lease: nothing will be stored."""
        if self._l2 is not None:
            self._l2.give_up(name)


def _nothing(key: Key, stamp: int, now_ms: int) -> Entry | None:
    return None


def _not_asked(name: Key) -> None:
    return None


def _not_leased(value: bytes | None) -> Lease:
    return Lease.NONE


def _not_held(name: Key) -> None:
    return None
