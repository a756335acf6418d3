"""The offline optimum for entries of one size.

Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966; with
the choice not to store at all, which no cache here is denied: what is asked for again last of all, the newcomer
included, is not kept. Exact when all sizes are equal; no optimum otherwise, see `beladysize` and `pfoo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from .nextuse import NEVER


class Belady:
    """Replay from the first request on, with what `next_uses` says of the very same trace."""

    __slots__ = ("_at", "_capacity", "_farthest", "_kept", "_next")

    def __init__(self, capacity: int, next_use: Sequence[int]) -> None:
        self._capacity = capacity
        self._next = next_use
        self._at = 0
        self._kept: dict[int, int] = {}  # key -> place of its next use
        self._farthest: list[tuple[int, int]] = []  # (-place, key); stale ones are passed over

    def request(self, key: int, size: int) -> bool:
        later = self._next[self._at]
        self._at += 1
        kept = self._kept
        hit = kept.pop(key, None) is not None
        if later == NEVER:
            return hit
        if not hit and len(kept) >= self._capacity // size:
            while self._farthest and kept.get(self._farthest[0][1]) != -self._farthest[0][0]:
                heappop(self._farthest)
            if not self._farthest or -self._farthest[0][0] <= later:
                return hit
            del kept[heappop(self._farthest)[1]]
        kept[key] = later
        heappush(self._farthest, (-later, key))
        return hit
