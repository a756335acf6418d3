"""What a key may use: how many requests and tokens a minute, and how many requests at a time.

Who has limits is admitted when its model is known (:meth:`Limits.admit`); whoever has to ask a backend reserves tokens
for that (:meth:`penstock.gateway.limits.grant.Grant.reserve`), so what is kept costs a request and no tokens. Nothing
here waits: a request that is over a limit is told when it would not be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...cache.gates import Gates
from ...cache.rows import Tally, TallyRow
from ...cache.segment import Segment
from ..caller import Caller
from ..config import MAX_BACKENDS
from ..errors import Fault, Kind
from ..metrics import LIMITED, Family
from .grant import Grant
from .purse import Purse
from .words import fields

_AGAIN_S = 1.0
"""When to come again to a key that is asked too much at a time: nobody knows."""
_TOLD_NS = 1_000_000
"""For so long answers say the same of a key of which no request has ended."""


class Counts(Protocol):
    """The part of :class:`penstock.gateway.metrics.Metrics` that is needed here."""

    def count(self, family: Family, *labels: str, n: int = 1) -> None: ...


class Limits:
    """One worker's. ``clock_ns``: the monotonic clock of the node."""

    def __init__(
        self,
        segment: Segment,
        row: TallyRow,
        tally: Tally,
        metrics: Counts,
        *,
        workers: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._segment = segment
        self._gates = Gates(segment)
        self._row = row
        self._tally = tally
        self._metrics = metrics
        self._workers = workers
        self.clock_ns = clock_ns
        self._purses: dict[int, Purse] = {}
        self._unsettled: set[Purse] = set()

    def admit(self, caller: Caller) -> Grant:
        """Count a request of a key that has limits; raises :class:`Fault` 429. ``end`` must follow."""
        row = caller.row
        purse = self._purses.get(row)
        if purse is None:
            purse = Purse(caller, MAX_BACKENDS + row, self._gates, self._row, self._tally, self._workers)
            self._purses[row] = purse
        elif purse.caller is not caller:
            purse.take(caller)
        most = caller.concurrent
        if most:
            # reserve first: W workers admit at most W-1 too many
            own = purse.running
            own[0] += 1
            if sum(purse.all_running) > most:
                own[0] -= 1
                self._metrics.count(LIMITED, "concurrent")
                raise Fault(
                    Kind.RATE_LIMITED,
                    f"Concurrency limit reached: {most} requests at a time. Please try again when one has ended.",
                    retry_after_s=_AGAIN_S,
                    headers=tuple(self.fields(purse)),
                )
        if caller.rpm:
            if purse.requests > 0:
                purse.requests -= 1
            else:
                wait = purse.request(self.clock_ns(), self._segment.limit_share)
                if wait:
                    if most:
                        purse.running[0] -= 1
                    raise self.refused(purse, "requests", wait)
        return Grant(self, purse, most > 0)

    def reserve(self, purse: Purse, n: int) -> None:
        """Set n tokens apart; raises :class:`Fault` 429."""
        if purse.tokens >= n:  # as `Purse.reserve` does, without asking for the time
            purse.tokens -= n
            purse.reserved += n
            return
        wait = purse.reserve(n, self.clock_ns(), self._segment.limit_share)
        if wait:
            raise self.refused(purse, "tokens", wait)

    def settle(self, purse: Purse, reserved: int, spent: int) -> None:
        """What was reserved has cost this much."""
        purse.reserved -= reserved
        purse.tokens += reserved - spent
        if purse.unsettled and not purse.visit(self.clock_ns(), self._segment.limit_share):
            self._unsettled.add(purse)

    def tick(self) -> None:
        """Tell the cells what they could not be told before."""
        if self._unsettled:
            now, share = self.clock_ns(), self._segment.limit_share
            self._unsettled = {p for p in self._unsettled if p.unsettled and not p.visit(now, share)}

    def fields(self, purse: Purse) -> list[tuple[str, str]]:
        """What every answer says of its key's limits; not to be changed.

        Answers that go out together say the same, unless the cells were visited between them: who asks one after
        another is told what is true.
        """
        now = self.clock_ns()
        told = purse.told
        if told is None or now - purse.told_ns > _TOLD_NS:
            caller = purse.caller
            purse.told = told = fields(caller.rpm, caller.tpm, purse.rooms(now))
            purse.told_ns = now
        return told

    def refused(self, purse: Purse, what: str, wait_ns: int) -> Fault:
        """What is told to who is over a limit."""
        caller = purse.caller
        self._metrics.count(LIMITED, what)
        most, name = (caller.rpm, "RPM") if what == "requests" else (caller.tpm, "TPM")
        wait_ms = -(-wait_ns // 1_000_000)
        return Fault(
            Kind.RATE_LIMITED,
            f"Rate limit reached for {what} per minute ({name}): Limit {most}. "
            f"Please try again in {wait_ms / 1000:.3f}s.",
            retry_after_s=wait_ms / 1000,
            headers=tuple(self.fields(purse)),
        )
