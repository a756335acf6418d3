"""Whether one part of Redis is asked at all: opens after failures, and one probe at a time closes it again.

Pure: it is told the time and what happened. A failure is an error or a passed deadline. It opens only when failures
went on for a while, so that a pause of Redis (a fork, a slow command) costs those who ask then their deadline and
nothing more.
"""

from __future__ import annotations

FAILURES = 5
FAILING_S = 0.25
FIRST_DELAY_S = 0.5
LAST_DELAY_S = 2.0
CALM_S = 10.0


class Breaker:
    """Closed: ask. Open: do not, but probe after ``delay_s``."""

    __slots__ = ("_closed_at", "_delay_s", "_failures", "_since", "open")

    def __init__(self) -> None:
        self.open = False
        self._failures = 0
        self._since = 0.0
        self._closed_at = float("-inf")
        self._delay_s = FIRST_DELAY_S

    @property
    def delay_s(self) -> float:
        """Seconds from opening, or from a probe that failed, to the next probe."""
        return self._delay_s

    def succeeded(self) -> None:
        """A question was answered in time."""
        self._failures = 0

    def failed(self, now_s: float) -> bool:
        """A question was not answered in time. True when this opened the breaker."""
        if self.open:
            return False
        if not self._failures:
            self._since = now_s
        self._failures += 1
        if self._failures < FAILURES or now_s - self._since < FAILING_S:
            return False
        return self.trip(now_s)

    def trip(self, now_s: float) -> bool:
        """Open it whatever went before. True when it was closed."""
        if self.open:
            return False
        self.open = True
        if now_s - self._closed_at >= CALM_S:
            self._delay_s = FIRST_DELAY_S
        else:  # it was closed too early
            self._delay_s = min(LAST_DELAY_S, self._delay_s * 2)
        return True

    def probed(self, ok: bool, now_s: float) -> bool:
        """The probe ended. True when this closed the breaker."""
        if not self.open:
            return False
        if not ok:
            self._delay_s = min(LAST_DELAY_S, self._delay_s * 2)
            return False
        self.open = False
        self._failures = 0
        self._closed_at = now_s
        return True
