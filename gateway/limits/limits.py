"""What a key may use: how many requests and tokens a minute, and how many requests at a time.

Who has limits is admitted when its model is known (:meth:`Limits.admit`); whoever has to ask a backend reserves tokens
for that (:meth:`penstock.gateway.limits.grant.Grant.reserve`), so what is kept costs a request and no tokens. Nothing
here waits: a request that is over a limit is told when it would not be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...cache.gates import Gates
from ...cache.rows import KEY_RUNNING, Tally, TallyRow
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
        purse = self._purses.get(caller.row)
        if purse is None:
            purse = Purse(
                caller, MAX_BACKENDS + caller.row, self._gates, self._row, self._tally, self._workers
            )
            self._purses[caller.row] = purse
        elif purse.caller is not caller:
            purse.take(caller)
        most = caller.concurrent
        if most:
            # reserve first: W workers admit at most W-1 too many
            self._row.add_key(KEY_RUNNING, caller.row, 1)
            if self._tally.of_key(KEY_RUNNING, caller.row) > most:
                self._row.add_key(KEY_RUNNING, caller.row, -1)
                self._metrics.count(LIMITED, "concurrent")
                raise Fault(
                    Kind.RATE_LIMITED,
                    f"Concurrency limit reached: {most} requests at a time. Please try again when one has ended.",
                    retry_after_s=_AGAIN_S,
                    headers=tuple(self.fields(purse)),
                )
        if caller.rpm and purse.requests < 1:
            wait = purse.request(self.clock_ns(), self._segment.limit_share)
            if wait:
                if most:
                    self._row.add_key(KEY_RUNNING, caller.row, -1)
                raise self.refused(purse, "requests", wait)
        elif caller.rpm:
            purse.requests -= 1
        return Grant(self, purse)

    def reserve(self, purse: Purse, n: int) -> None:
        """Set n tokens apart; raises :class:`Fault` 429."""
        if purse.tokens >= n:  # as `Purse.reserve` does, without asking for the time
            purse.tokens -= n
            purse.reserved += n
            return
        wait = purse.reserve(n, self.clock_ns(), self._segment.limit_share)
        if wait:
            raise self.refused(purse, "tokens", wait)

    def end(self, purse: Purse, row: int, running: bool, reserved: int, spent: int) -> None:
        """One request has ended."""
        if running:
            self._row.add_key(KEY_RUNNING, row, -1)
        if reserved:
            purse.settle(reserved, spent)
        elif purse.requests >= 0:
            return
        if purse.unsettled and not purse.visit(self.clock_ns(), self._segment.limit_share):
            self._unsettled.add(purse)

    def tick(self) -> None:
        """Tell the cells what they could not be told before."""
        if self._unsettled:
            now, share = self.clock_ns(), self._segment.limit_share
            self._unsettled = {p for p in self._unsettled if p.unsettled and not p.visit(now, share)}

    def fields(self, purse: Purse) -> list[tuple[str, str]]:
        """What every answer says of its key's limits."""
        caller = purse.caller
        return fields(caller.rpm, caller.tpm, purse.rooms(self.clock_ns()))

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
