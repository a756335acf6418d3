"""Exact LRU by bytes, the yardstick. It is charged the entries alone: its list and its table cost it nothing."""

from __future__ import annotations


class Lru:
    """Least recently used goes first, until what is kept fits `capacity` bytes."""

    __slots__ = ("_capacity", "_kept", "_used")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: dict[int, int] = {}  # key -> size, least recently used first
        self._used = 0

    def request(self, key: int, size: int) -> bool:
        kept = self._kept
        stored = kept.pop(key, None)
        if stored is not None:
            kept[key] = stored
            return True
        if size <= self._capacity:
            self._used += size
            while self._used > self._capacity:
                self._used -= kept.pop(next(iter(kept)))
            kept[key] = size
        return False
