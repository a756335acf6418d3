"""What is counted of one pool, for `/metrics`."""

from __future__ import annotations

from collections.abc import Sequence

from ...gateway.metrics import Metrics
from .. import scrape
from .words import (
    Died,
    Event,
    MemberPhase,
    SleepFailed,
    Slept,
    Started,
    StartFailed,
    Stopped,
    WakeFailed,
    Woke,
)

_OUTCOMES: dict[type[object], tuple[str, str]] = {
    Started: ("start", "ready"),
    StartFailed: ("start", "failed"),
    Woke: ("wake", "ready"),
    WakeFailed: ("wake", "failed"),
}


class Counts:
    """Starts and wakes by their outcome and how long they took, stops, deaths, and sleeps."""

    __slots__ = ("_began", "_metrics", "_pool")

    def __init__(self, pool: str, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._began: dict[int, float] = {}

    def event(
        self, event: Event, before: Sequence[MemberPhase], after: Sequence[MemberPhase], now: float
    ) -> None:
        """One event; before, after: what the members did before it and do now."""
        member = getattr(event, "member", None)
        if member is None or member >= len(before):
            for i, phase in enumerate(after):
                if phase is MemberPhase.STARTING and i < len(before) and before[i] is not phase:
                    self._began[i] = now
            return
        outcome = _OUTCOMES.get(type(event))
        began = self._began.pop(member, None) if outcome is not None else None
        if outcome is not None and began is not None:
            kind, how = outcome
            self._metrics.count(scrape.POOL_STARTS, self._pool, kind, how)
            if how == "ready":
                observe = self._metrics.histogram(scrape.POOL_START_SECONDS, self._pool, kind)
                observe(round((now - began) * 1e9))
        elif isinstance(event, Stopped):
            self._metrics.count(scrape.POOL_STOPS, self._pool)
        elif isinstance(event, Died) and not event.elsewhere:
            self._metrics.count(scrape.POOL_DEATHS, self._pool)
        elif isinstance(event, SleepFailed):
            self._metrics.count(scrape.POOL_SLEEPS, self._pool, "failed")
        elif isinstance(event, Slept) and before[member] is not MemberPhase.OFF:
            self._metrics.count(scrape.POOL_SLEEPS, self._pool, "asleep")
