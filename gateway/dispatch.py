"""Sends one request upstream: a backend is chosen, leased and asked, and another one where that is safe.

What comes back is an answer that has begun, and holds its places (one of the model, one of the backend) until it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable, Coroutine
from time import perf_counter_ns
from typing import Any

from ..cache.rows import Tally, TallyRow
from .admission import Admission
from .breakers import Breakers
from .choice import Choice
from .door import Dismissed
from .endpoints import RESPONSES
from .errand import Errand
from .errors import Fault, Kind
from .faults import fault_of
from .fleet import Backend, Model
from .hold import LONGEST_WAIT_S, USELESS, Hold, Patience
from .lease import Lease
from .life import Life
from .metrics import FALLBACKS, RETRIES, UPSTREAM_FAULTS, Metrics
from .placed import Placed
from .pool_view import READY
from .retry import NEVER_OPENED, SHUN_S, Again, RetryBudget, after_fault, after_status
from .seldom import Seldom
from .sent import Sent
from .sticky import Sticky
from .upstream.call import Call
from .upstream.fault import FaultKind, UpstreamFault

log = logging.getLogger(__name__)

#: When a backend that is down may be back, as far as anybody knows (ns).
_UNKNOWN_NS = 2_000_000_000
#: Faults that are the model's own, so that another model may answer.
_NOT_HERE = frozenset({Kind.QUEUE_FULL, Kind.WAKE_FAILED, Kind.WAKE_TIMEOUT, Kind.NO_BACKEND})

_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._~-]{1,128})"')


class _Spent(Exception):
    """A model could not be had, nobody has acted, and another model may answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Dispatch:
    """One worker's way to the backends."""

    def __init__(
        self,
        row: TallyRow,
        tally: Tally,
        slot: int,
        admission: Admission,
        hold: Hold,
        breakers: Breakers,
        sticky: Sticky,
        metrics: Metrics,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.admission = admission
        self.breakers = breakers
        self.hold = hold
        self._row = row
        self._choice = Choice(row, tally, slot, tick=loop.time, draw=random.random)
        self._sticky = sticky
        self._metrics = metrics
        self._clock = clock
        self.budget = RetryBudget()
        #: takes what is to go upstream together with others, of models that want that (:mod:`.batching`)
        self.together: Callable[[Errand, Life], Coroutine[Any, Any, Sent] | None] | None = None
        self._seldom = Seldom()
        #: of the probe that was chosen last
        self._token = 0

    def send(self, errand: Errand, life: Life, may_join: bool = True) -> Coroutine[Any, Any, Sent]:
        """One answer that has begun, and the places it holds; raises :class:`Fault` after the last try.

        ``may_join``: it may go upstream together with others.
        """
        if may_join and errand.model.batching is not None and self.together is not None:
            joined = self.together(errand, life)
            if joined is not None:
                return joined
        if errand.model.fallbacks and errand.pinned is None and errand.request is not None:
            return self._send_to_any(errand, life)
        return self._send(errand, errand.model, errand.body, life, False)

    async def _send_to_any(self, errand: Errand, life: Life) -> Sent:
        """The model that was asked for, and when it cannot be had those that stand in for it."""
        models = (errand.model, *errand.model.fallbacks)
        body = errand.body
        for model, following in itertools.pairwise(models):
            try:
                return await self._send(errand, model, body, life, True)
            except _Spent as spent:
                try:
                    body = errand.body_for(following)
                except Fault:
                    # it cannot be said in such a body who is asked, and that is not the client's fault
                    raise spent.fault from None
                self._metrics.count(FALLBACKS, model.name, following.name, spent.fault.kind.value)
                more = self._seldom.due(("fallback", model.name, following.name), self._clock())
                if more is not None:
                    log.warning(
                        "fallback model=%s to=%s cause=%s request_id=%s more=%d",
                        *(model.name, following.name, spent.fault.kind.value, errand.raw.request_id, more),
                    )
        return await self._send(errand, models[-1], body, life, False)

    async def _send(
        self, errand: Errand, model: Model, body: bytes | None, life: Life, falls_back: bool
    ) -> Sent:
        admission, caller, pool = self.admission, errand.caller, model.pool
        asked_for = model is errand.model
        patience: Patience | None = None
        entered = admission.try_enter(model, caller)
        seated = False
        if not entered and (pool is None or self._open(model)):
            seated = True
            try:
                await admission.queue(model, life, caller)
                entered = True
            except Fault as fault:
                if falls_back and fault.kind is Kind.QUEUE_FULL:
                    raise _Spent(fault) from None
                raise
            except Dismissed:
                pass
        # in this order: it is counted, and only then is the state loaded (docs/adr/0022-hold.md)
        if pool is not None and not (
            entered and pool.cell[0] == READY and (seated or model.name not in self.hold.rooms)
        ):
            if entered:
                admission.leave(model, caller)
            patience = Patience(pool.ready_timeout_s)
            model = await self._wake(errand, model, life, patience, falls_back, seated)
        entered = True
        try:
            raw, pinned, cuts, budget = errand.raw, errand.pinned, errand.cuts, self.budget
            if asked_for:
                budget.deposit()
            length = "0" if body is None else str(len(body))
            fields = f"{raw.forwarded}x-request-id: {raw.request_id}\r\ncontent-length: {length}\r\n\r\n"
            tried: tuple[Backend, ...] = ()
            started = self._clock()
            fresh = False
            attempt = before = 0
            failed: Backend | None = None
            backend = (
                self.choose(model, tried, errand) if pinned is None else self._first(model, errand, pinned)
            )
            while True:
                if backend is None:
                    if model.pool is None or (pinned and not failed and self.hold.able(model)):
                        gone = self._gone(model)
                        raise _Spent(gone) if falls_back else gone
                    entered = False
                    admission.leave(model, caller)
                    patience = patience or Patience(model.pool.ready_timeout_s)
                    model = await self._wake(errand, model, life, patience, falls_back, True, failed)
                    entered = True
                    failed, tried, fresh = None, (), False
                    before, attempt = before + attempt, 0
                    started = self._clock()
                    backend = self._first(model, errand, pinned)
                    continue
                if not attempt:
                    token = self._token if backend.shut else 0
                attempt += 1
                if cuts:
                    cuts.clear()  # of an attempt that failed
                start = backend.head(errand.method, errand.target)
                if life.witnessed:
                    start += life.asks(backend, model.name)
                head = (start + fields).encode("ascii")
                lease = Lease(self._row, backend.index)
                began = perf_counter_ns()
                try:
                    call = await backend.pool.call(
                        head, body, model.timeouts, total_started=started, fresh=fresh, cuts=cuts
                    )
                except UpstreamFault as fault:
                    lease.settle()
                    if life.witnessed:
                        life.missed(fault.kind.value)
                    if model.timed:
                        backend.ewma.failed((perf_counter_ns() - began) / 1e9, self._clock())
                    if fault.kind in NEVER_OPENED:
                        backend.shunned_until = self._clock() + SHUN_S
                    # of the time that ran out others may have had the most
                    if not (fault.stale or (attempt > 1 and fault.kind is FaultKind.TOTAL_TIMEOUT)):
                        self.breakers.failed(backend, token, fault.kind.value)
                    self._metrics.count(UPSTREAM_FAULTS, model.name, backend.name, fault.kind.value)
                    others = (
                        pinned is None and not (fault.stale and token) and self._left(model, tried, backend)
                    )
                    again = after_fault(fault, attempt, others, budget)
                    if again is Again.SAME_FRESH and backend.shut and not token:
                        again = Again.NO  # its breaker has opened meanwhile
                    if again is Again.NO and model.pool and (fault.stale or fault.kind in NEVER_OPENED):
                        failed = backend  # nothing has reached it: a server that is gone is started anew
                    elif again is Again.NO:
                        if falls_back and (fault.stale or fault.kind in NEVER_OPENED) and budget.withdraw():
                            raise _Spent(fault_of(fault)) from None
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
                    status = call.status
                    if life.witnessed:
                        life.answered(status)
                    if status < 500:
                        if token:  # an answer that has begun will do: its end may be minutes away
                            self.breakers.succeeded(backend, token)
                        if model.timed:
                            backend.ewma.observe((perf_counter_ns() - began) / 1e9, self._clock())
                        if status == 429:
                            backend.shunned_until = self._clock() + SHUN_S
                        if errand.endpoint is RESPONSES:
                            self._remember(call, backend, errand.caller.tenant)
                        return Placed(self, errand, model, backend, lease, call, before + attempt)
                    self.breakers.failed(backend, token, str(status))
                    self._metrics.count(UPSTREAM_FAULTS, model.name, backend.name, str(status))
                    others = pinned is None and self._left(model, tried, backend)
                    if after_status(status, attempt, others, budget) is Again.NO:
                        if not (falls_back and status in (502, 503) and budget.withdraw()):
                            return Placed(self, errand, model, backend, lease, call, before + attempt)
                        call.abort()
                        lease.settle()
                        raise _Spent(Fault(Kind.NO_BACKEND, f"the backend answered {status}"))
                    call.abort()
                    lease.settle()
                    again, cause = Again.ELSEWHERE, str(status)
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
                if failed is not None:
                    backend = None
                elif not fresh:
                    tried = (*tried, backend)
                    other = self.choose(model, tried, errand)
                    assert other is not None  # ELSEWHERE is only said when there is another
                    backend, token = other, 0
        except BaseException:
            if entered:
                if model.pool is not None:
                    self.finished(model)
                admission.leave(model, caller)
            raise

    def finished(self, model: Model) -> None:
        """Say that its servers were busy until now; its place is to be given back after that."""
        self._row.finished(model.index, self.breakers.now_ns())

    # ---- pools

    def _open(self, model: Model) -> bool:
        """Whether requests for a model with a pool go on, and nobody is before them that still waits for that."""
        pool = model.pool
        return pool is None or (pool.cell[0] == READY and model.name not in self.hold.rooms)

    async def _wake(
        self,
        errand: Errand,
        model: Model,
        life: Life,
        patience: Patience,
        falls_back: bool,
        seated: bool,
        failed: Backend | None = None,
    ) -> Model:
        """Wait for the model's servers, and take a place again; the model as it is configured by then.

        Whoever comes here has no place; who is raised out of here has none.
        """
        admission, caller = self.admission, errand.caller
        try:
            while True:
                model = await self.hold.wait(
                    *(model, caller, life, patience), streams=errand.streams, seated=seated, failed=failed
                )
                seated, failed = True, None
                if not admission.try_enter(model, caller):
                    try:
                        await admission.queue(model, life, caller, True)
                    except Dismissed:
                        continue
                if model.pool is None or model.pool.cell[0] == READY:
                    return model
                admission.leave(model, caller)
        except Fault as fault:
            if falls_back and fault.kind in _NOT_HERE:
                raise _Spent(fault) from None
            raise

    def _first(self, model: Model, errand: Errand, pinned: Backend | None) -> Backend | None:
        """The backend to begin with; None when there is none that may be asked."""
        if pinned is None:
            return self.choose(model, (), errand)
        if model.pool is not None:
            # what it held is gone with it: then any other can say so
            name = pinned.identity
            known = next((b for b in model.backends if b.identity == name), None)
            return self._pinned(known) if known is not None and known.up else self.choose(model, (), errand)
        return self._pinned(pinned)

    def _left(self, model: Model, tried: tuple[Backend, ...], failed: Backend) -> bool:
        """Whether any other backend may be asked."""
        return any(b.up and not b.shut and b is not failed and b not in tried for b in model.backends)

    def _pinned(self, backend: Backend) -> Backend | None:
        """The one that will do, if its breaker lets a request through."""
        if backend.shut:
            self._token = self.breakers.probe(backend)
            return backend if self._token else None
        return backend

    def _gone(self, model: Model) -> Fault:
        """No backend may be asked, and when it is worth while to ask again."""
        now = self.breakers.now_ns()
        due = [b.probe_ns - now for b in model.backends if b.up and b.shut]
        again_s = max(min(due, default=_UNKNOWN_NS), 0) / 1e9
        return Fault(
            Kind.NO_BACKEND,
            f"no backend of '{model.name}' is healthy",
            retry_after_s=again_s,
            headers=USELESS if again_s > LONGEST_WAIT_S else (),
        )

    def choose(
        self, model: Model, tried: tuple[Backend, ...], errand: Errand | None = None
    ) -> Backend | None:
        """The backend to ask: one whose breaker is due for its probe, else the policy's; None when there is none.

        A request that has failed once is no probe: it would likely fail again.
        """
        if self.breakers.shut and not tried:
            for backend in model.backends:
                if backend.shut and backend.up:
                    self._token = self.breakers.probe(backend)
                    if self._token:
                        return backend
        if len(model.backends) == 1 and not tried:
            only = model.backends[0]
            return only if only.up and not only.shut else None
        return self._choice.pick(model, tried, self._clock(), errand)

    def _remember(self, call: Call, backend: Backend, tenant: str) -> None:
        """Which backend holds a response that it may have stored, and whose it is."""
        if call.status == 200:
            match = _RESPONSE_ID.search(call.body, 0, 4096)
            if match is not None:
                self._sticky.put(match[1].decode("ascii"), backend.index, tenant)
