"""How fast places are handed on to those that wait."""

from __future__ import annotations

_SAMPLES = 32
_FEW = 16


class Pace:
    """How fast places are handed on here, while somebody waits: a moving average over 32 of them.

    It is known once there were 16, and forgotten when nothing was handed on for long: what came of an old one would
    keep away those that could show that it has changed.
    """

    __slots__ = ("_handed_at", "_interval_s", "_last", "_seen")

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._last: float | None = None
        self._handed_at = 0.0
        self._seen = 0

    def admitted(self, now: float) -> None:
        """A place was handed on."""
        if self._last is not None:
            self._seen += 1
            gap = now - self._last
            self._interval_s += (gap - self._interval_s) / min(self._seen, _SAMPLES)
        self._last = self._handed_at = now

    def begin(self, now: float) -> None:
        """Somebody waits where nobody did. The first that wait of all say nothing: many places fill at once."""
        self._last = now if self._seen >= _FEW else None

    def expected_s(self, ahead: float, now: float, valid_s: float) -> float:
        """How long until as many places were handed on as there are others ahead; 0 where it is not known."""
        if now - self._handed_at >= valid_s:
            self._seen = 0
        return ahead * self._interval_s if self._seen >= _FEW else 0.0
