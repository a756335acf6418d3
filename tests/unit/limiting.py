"""Workers' limits on one segment, by a clock that stands until it is moved."""

from __future__ import annotations

import os

from penstock.cache.layout import Geometry
from penstock.cache.rows import Tally, TallyRow
from penstock.cache.segment import Segment
from penstock.gateway.caller import Caller
from penstock.gateway.config import MAX_BACKENDS
from penstock.gateway.errors import Fault
from penstock.gateway.limits.gcra import MINUTE_NS
from penstock.gateway.limits.grant import Grant
from penstock.gateway.limits.limits import Limits
from penstock.gateway.metrics import Family

START_NS = 5 * MINUTE_NS
MS = 1_000_000
GEOMETRY = Geometry(slots=8, backends=1, models=1, counter_bytes=1024, gates=MAX_BACKENDS + 4, keys=4)


class Clock:
    """Nanoseconds."""

    def __init__(self) -> None:
        self.now = START_NS

    def __call__(self) -> int:
        return self.now


class Counted:
    """What was counted, by label."""

    def __init__(self) -> None:
        self.by: dict[str, int] = {}

    def count(self, family: Family, *labels: str, n: int = 1) -> None:
        self.by[labels[0]] = self.by.get(labels[0], 0) + n


class Cells:
    """A segment, and workers on it that exclude each other as processes do."""

    def __init__(self, clock: Clock) -> None:
        self.segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
        self.tally = Tally(self.segment)
        self._clock = clock
        self._opened = [self.segment]

    def worker(self, slot: int, workers: int = 4) -> Limits:
        segment = Segment.attach(self.segment.fd)
        self._opened.append(segment)
        row, tally = TallyRow(segment, slot), Tally(segment)
        return Limits(segment, row, tally, Counted(), workers=workers, clock_ns=self._clock)

    def close(self) -> None:
        for segment in self._opened:
            segment.close()


def key(row: int = 0, **limits: int) -> Caller:
    """An API key with limits."""
    return Caller("tenant", id=f"key-{row}", row=row, **limits)


def asked(limits: Limits, caller: Caller) -> Grant | Fault:
    """What becomes of one request."""
    try:
        return limits.admit(caller)
    except Fault as fault:
        return fault
