"""When a backend that fails is left alone, and who tries it again: one breaker a backend, for the whole node.

    closed     every request may go; so many failures in a row open it
    open       none goes; after a while one request claims the probe
    half-open  that request alone goes; it closes the breaker or opens it anew, and a probe that is lost (its worker
               died, or waits) is given to another request after the same while

Pure: a state is the eight cells of a gate stripe (:mod:`penstock.cache.gates`), the clock is an argument. What began
before the breaker opened says nothing about the time since: only a probe's word counts then. That a probe went well is
true however long it took, also when another has the turn by now; that it failed counts while it has the turn. Which
failures are a backend's fault is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Sequence

CLOSED, OPEN, HALF_OPEN = range(3)

# cells: phase, failures in a row, until when it stays (ns), the last probe's token, when it closed last (ns),
# identity, the last token before it opened
_PHASE, _FAILURES, _UNTIL, _TOKEN, _CLOSED, _IDENTITY, _BEFORE = range(7)


class State:
    """One breaker as it stands: ``until_ns`` is when the next probe may go, ``closed_ns`` when one last went well."""

    __slots__ = ("before", "closed_ns", "failures", "identity", "phase", "token", "until_ns")

    def __init__(self, cells: Sequence[int], identity: int) -> None:
        """Of the cells of a stripe; those of another backend that had it before are as good as none."""
        if cells[_IDENTITY] != identity:
            cells = (0,) * 7
        self.phase = cells[_PHASE]
        self.failures = cells[_FAILURES]
        self.until_ns = cells[_UNTIL]
        self.token = cells[_TOKEN]
        self.closed_ns = cells[_CLOSED]
        self.identity = identity
        self.before = cells[_BEFORE]

    def cells(self) -> list[int]:
        """The eight cells."""
        return [
            self.phase,
            self.failures,
            self.until_ns,
            self.token,
            self.closed_ns,
            self.identity,
            self.before,
            0,
        ]

    def failed(self, token: int, now_ns: int, limit: int, open_ns: int) -> None:
        """An attempt has failed; ``token`` is 0 for one that was no probe."""
        if self.phase == CLOSED:
            self.failures += 1
            if self.failures < limit:
                return
            self.before = self.token
        elif self.phase != HALF_OPEN or token != self.token:
            return
        self.phase = OPEN
        self.until_ns = now_ns + open_ns

    def succeeded(self, token: int, now_ns: int) -> None:
        """An attempt went well."""
        if self.phase == CLOSED:
            self.failures = 0
        elif self.phase == HALF_OPEN and token > self.before:
            self.phase = CLOSED
            self.failures = 0
            self.closed_ns = now_ns

    def claim(self, now_ns: int, open_ns: int) -> int:
        """The token of the next probe if one is due, else 0."""
        if self.phase == CLOSED or now_ns < self.until_ns:
            return 0
        self.phase = HALF_OPEN
        self.until_ns = now_ns + open_ns
        self.token += 1
        return self.token
