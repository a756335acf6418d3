"""Leases that this process keeps while it makes an answer, however long that takes.

A lease is short, so that nobody waits long for a holder that died; a living one prolongs it three times in its
length. One timer for all of them, and none while there are none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LONGEST_S = 600.0  # who holds longer has forgotten it


class Holds:
    """``prolong(key)`` is called again and again for each key that is held."""

    __slots__ = ("_clock", "_every_s", "_held", "_loop", "_prolong", "_timer")

    def __init__(
        self,
        prolong: Callable[[bytes], object],
        every_s: float,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._prolong = prolong
        self._every_s = every_s
        self._loop = loop
        self._clock = clock
        self._held: dict[bytes, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def add(self, key: bytes) -> None:
        """Hold it until ``drop``."""
        self._held[key] = self._clock()
        if self._timer is None:
            self._timer = self._loop.call_later(self._every_s, self._beat)

    def drop(self, key: bytes) -> None:
        """Hold it no longer; no harm done when it was not held."""
        self._held.pop(key, None)

    def close(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        oldest = self._clock() - LONGEST_S
        for key, since in list(self._held.items()):
            if since < oldest:
                del self._held[key]
            else:
                self._prolong(key)
        self._timer = self._loop.call_later(self._every_s, self._beat) if self._held else None
