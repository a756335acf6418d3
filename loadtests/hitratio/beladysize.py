"""What an offline policy reaches when sizes differ: below the optimum, which is NP-hard, and usually near it.

Belady-size drops what costs most space until it is asked for again, its size times the way to its next use. Of 64
entries drawn at random instead of all, as simulators do it, because the order changes with every request. Source:
Berger, Beckmann, Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object Sizes", POMACS 2(2), 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .nextuse import NEVER

_DRAWN = 64


class BeladySize:
    """Replay from the first request on, with what `next_uses` says of the very same trace."""

    __slots__ = ("_at", "_capacity", "_kept", "_keys", "_next", "_place", "_random", "_used")

    def __init__(self, capacity: int, next_use: Sequence[int], random: Random) -> None:
        self._capacity = capacity
        self._next = next_use
        self._random = random
        self._at = 0
        self._used = 0
        self._kept: dict[int, tuple[int, int]] = {}  # key -> place of its next use, size
        self._keys: list[int] = []  # what is kept, to draw from
        self._place: dict[int, int] = {}  # key -> where it is in _keys

    def request(self, key: int, size: int) -> bool:
        now = self._at
        self._at += 1
        later = self._next[now]
        entry = self._kept.get(key)
        if entry is not None:
            if later == NEVER:
                self._drop(key)
            else:
                self._kept[key] = (later, entry[1])
            return True
        if later != NEVER and size <= self._capacity:
            self._keep(key, later, size)
            while self._used > self._capacity:
                self._drop(self._costliest(now, key))
        return False

    def _costliest(self, now: int, newest: int) -> int:
        keys, kept = self._keys, self._kept
        if len(keys) <= _DRAWN:
            drawn = keys
        else:
            random, count = self._random.random, len(keys)
            drawn = [keys[int(random() * count)] for _ in range(_DRAWN)]
            if newest in kept:
                drawn.append(newest)

        def cost(key: int) -> int:
            later, size = kept[key]
            return (later - now) * size

        return max(drawn, key=cost)

    def _keep(self, key: int, later: int, size: int) -> None:
        self._place[key] = len(self._keys)
        self._keys.append(key)
        self._kept[key] = (later, size)
        self._used += size

    def _drop(self, key: int) -> None:
        self._used -= self._kept.pop(key)[1]
        place = self._place.pop(key)
        last = self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._place[last] = place
