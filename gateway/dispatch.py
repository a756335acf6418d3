"""Sends one request upstream: a backend is chosen, leased and asked, and another one where that is safe.

What comes back is an answer that has begun. The lease stays with the caller until the answer has ended.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from time import perf_counter_ns

from ..cache.rows import Tally, TallyRow
from .endpoints import RESPONSES, Endpoint
from .errors import Fault, Kind
from .faults import fault_of
from .fleet import Backend, Model
from .lease import Lease
from .life import Life
from .metrics import RETRIES, UPSTREAM_FAULTS, Metrics
from .policies.least_connections import least_connections
from .raw import RawRequest
from .retry import NEVER_OPENED, SHUN_S, Again, RetryBudget, after_fault, after_status
from .seldom import Seldom
from .sticky import Sticky
from .upstream.call import Call
from .upstream.fault import UpstreamFault

log = logging.getLogger(__name__)

_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._~-]{1,128})"')


class Errand:
    """What is to be asked upstream. ``pinned``: no other backend will do. ``cuts`` gets the ends of the chunks."""

    __slots__ = ("body", "cuts", "endpoint", "method", "model", "pinned", "raw", "target")

    def __init__(
        self,
        endpoint: Endpoint,
        model: Model,
        method: str,
        target: str,
        raw: RawRequest,
        body: bytes | None,
        pinned: Backend | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.method = method
        self.target = target
        self.raw = raw
        self.body = body
        self.pinned = pinned
        self.cuts: list[int] | None = None


class Sent:
    """An answer that has begun: ``end`` must follow."""

    __slots__ = ("attempts", "backend", "call", "lease")

    def __init__(self, lease: Lease, call: Call, backend: Backend, attempts: int) -> None:
        self.lease = lease
        self.call = call
        self.backend = backend
        self.attempts = attempts

    def end(self) -> None:
        """Give the place back; of an answer that is not whole nobody wants the rest."""
        if not self.call.complete:
            self.call.abort()
        self.lease.settle()


class Dispatch:
    """One worker's way to the backends."""

    def __init__(
        self,
        row: TallyRow,
        tally: Tally,
        slot: int,
        sticky: Sticky,
        metrics: Metrics,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._row = row
        self._tally = tally
        self._slot = slot
        self._sticky = sticky
        self._metrics = metrics
        self._loop = loop
        self._clock = clock
        self._budget = RetryBudget()
        self._seldom = Seldom()
        self._turn = 0
        self._others: dict[int, int] = {}
        self._others_at = -1.0

    async def send(self, errand: Errand, life: Life) -> Sent:
        """One answer that has begun, and the lease it is held under; raises :class:`Fault` after the last try."""
        model, raw, body, pinned, cuts = errand.model, errand.raw, errand.body, errand.pinned, errand.cuts
        budget = self._budget
        budget.deposit()
        length = "0" if body is None else str(len(body))
        fields = f"{raw.forwarded}x-request-id: {raw.request_id}\r\ncontent-length: {length}\r\n\r\n"
        tried: tuple[Backend, ...] = ()
        started = self._clock()
        fresh = False
        attempt = 0
        backend = pinned or self.choose(model, tried)
        if backend is None:
            raise Fault(Kind.NO_BACKEND, f"no backend of '{model.name}' is healthy", retry_after_s=2.0)
        while True:
            attempt += 1
            if cuts:
                cuts.clear()  # of an attempt that failed
            head = (backend.head(errand.method, errand.target) + fields).encode("ascii")
            lease = Lease(self._row, backend.index)
            began = perf_counter_ns()
            try:
                call = await backend.pool.call(
                    head, body, model.timeouts, total_started=started, fresh=fresh, cuts=cuts
                )
            except UpstreamFault as fault:
                lease.settle()
                if fault.kind in NEVER_OPENED:
                    backend.shunned_until = self._clock() + SHUN_S
                self._metrics.count(UPSTREAM_FAULTS, model.name, backend.name, fault.kind.value)
                other = self.choose(model, (*tried, backend)) if pinned is None else None
                again = after_fault(fault, attempt, other is not None, budget)
                if again is Again.NO:
                    more = self._seldom.due(("failed", backend.name, fault.kind), self._clock())
                    if more is not None:
                        log.warning(
                            "upstream_failed model=%s backend=%s attempt=%d cause=%s request_id=%s more=%d",
                            *(model.name, backend.name, attempt, fault, raw.request_id, more),
                        )
                    raise fault_of(fault) from None
                cause = "stale_connection" if fault.stale else fault.kind.value
            except BaseException:
                lease.settle()
                raise
            else:
                if call.status not in (502, 503):
                    if errand.endpoint is RESPONSES:
                        self._remember(call, backend)
                    return Sent(lease, call, backend, attempt)
                other = self.choose(model, (*tried, backend)) if pinned is None else None
                if after_status(call.status, attempt, other is not None, budget) is Again.NO:
                    return Sent(lease, call, backend, attempt)
                call.abort()
                lease.settle()
                again, cause = Again.ELSEWHERE, str(call.status)
            finally:
                life.upstream_ns += perf_counter_ns() - began
            more = self._seldom.due(("retry", backend.name, cause), self._clock())
            if more is not None:
                log.info(
                    "upstream_retry model=%s backend=%s attempt=%d cause=%s request_id=%s more=%d",
                    *(model.name, backend.name, attempt, cause, raw.request_id, more),
                )
            self._metrics.count(RETRIES, model.name, cause)
            fresh = again is Again.SAME_FRESH
            if not fresh:
                assert other is not None  # ELSEWHERE is only said when there is another
                tried = (*tried, backend)
                backend = other

    def choose(self, model: Model, tried: tuple[Backend, ...]) -> Backend | None:
        """The least busy backend that is up and was not tried; None when there is none."""
        if len(model.backends) == 1 and not tried:
            only = model.backends[0]
            return only if only.up else None
        now = self._clock()
        candidates = [b for b in model.backends if b.up and b not in tried]
        # a backend that refuses answers fastest and would look the least busy of all
        candidates = [b for b in candidates if b.shunned_until <= now] or candidates
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        self._turn += 1
        row, others = self._row, self._others_inflight
        loads = [row.inflight(b.index) + others(b.index) for b in candidates]
        return candidates[least_connections(loads, [b.weight for b in candidates], self._turn)]

    def _others_inflight(self, index: int) -> int:
        """What the other workers have in flight there; summed once a loop tick (a wide sum costs 39 µs)."""
        now = self._loop.time()
        if now != self._others_at:
            self._others.clear()
            self._others_at = now
        known = self._others.get(index)
        if known is None:
            known = self._others[index] = self._tally.others_inflight(index, self._slot)
        return known

    def _remember(self, call: Call, backend: Backend) -> None:
        """Which backend holds a response that it may have stored."""
        if call.status == 200:
            match = _RESPONSE_ID.search(call.body, 0, 4096)
            if match is not None:
                self._sticky.put(match[1].decode("ascii"), backend.index)
