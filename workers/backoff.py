"""When to start a dead process again: at once or later. Pure: the clock is an argument.

Strategy: a few deaths in a short time cost nothing, a machine kills processes for many reasons. Further ones wait
longer and longer. A process that dies again and again without ever having been ready is in a crash loop.
"""

from __future__ import annotations

FREE_DEATHS = 3
"""Deaths within the window that are answered at once."""
WINDOW_S = 10.0
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
LOOP_AFTER = 10
"""Deaths in a row, none of them ready before, that are a crash loop."""


class Backoff:
    """The deaths of one process slot."""

    __slots__ = ("_deaths", "_never_ready")

    def __init__(self) -> None:
        self._deaths: list[float] = []
        self._never_ready = 0

    def died(self, now_s: float, *, was_ready: bool) -> float:
        """Note a death; seconds to wait before the next start."""
        self._never_ready = 0 if was_ready else self._never_ready + 1
        self._deaths = [then for then in self._deaths if now_s - then < WINDOW_S]
        self._deaths.append(now_s)
        extra = len(self._deaths) - FREE_DEATHS
        return 0.0 if extra <= 0 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (extra - 1))

    @property
    def crash_loop(self) -> bool:
        """Whether the process died often enough in a row without ever being ready."""
        return self._never_ready >= LOOP_AFTER
