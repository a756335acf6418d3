"""Keeps a line that every request of an outage would write to one a second, and says how many it stands for."""

from __future__ import annotations

from collections.abc import Hashable

INTERVAL_S = 1.0
_MAX_KEYS = 1024


class Seldom:
    """Which lines are due; the clock is an argument."""

    __slots__ = ("_left_out", "_next_s")

    def __init__(self) -> None:
        self._next_s: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def due(self, key: Hashable, now: float) -> int | None:
        """None when the line was written less than a second ago, else how many like it were left out since."""
        if now < self._next_s.get(key, 0.0):
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return None
        if len(self._next_s) >= _MAX_KEYS:
            self._next_s.clear()
            self._left_out.clear()
        self._next_s[key] = now + INTERVAL_S
        return self._left_out.pop(key, 0)
