"""Whether a pool's load has long been too much, or too little, for the members that are ready."""

from __future__ import annotations

from .terms import Terms

GROW_S = 10.0


class Pace:
    """Two clocks: since when the ready members have had more than `target` each, and since when one fewer could
    carry the load at half of it. Both begin anew with each change of what is ready."""

    __slots__ = ("_high", "_low", "_ready")

    def __init__(self) -> None:
        self._high: float | None = None
        self._low: float | None = None
        self._ready = 0

    def look(self, load: int, ready: int, target: int, now: float) -> None:
        """What is so now."""
        if ready != self._ready:
            self._high = self._low = None
            self._ready = ready
        if not ready or load <= target * ready:
            self._high = None
        elif self._high is None:
            self._high = now
        if ready < 2 or 2 * load > target * (ready - 1):
            self._low = None
        elif self._low is None:
            self._low = now

    def too_much(self, now: float) -> bool:
        """Whether one more member is called for."""
        return self._high is not None and now >= self._high + GROW_S

    def too_little(self, terms: Terms, now: float) -> bool:
        """Whether one member can go."""
        return self._low is not None and now >= self._low + terms.idle_timeout_s

    def due(self, terms: Terms) -> tuple[float, ...]:
        """When the answers change if nothing else does."""
        high = () if self._high is None else (self._high + GROW_S,)
        return high if self._low is None else (*high, self._low + terms.idle_timeout_s)
