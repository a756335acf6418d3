"""One request's life, from its bytes to its answer. `docs/request.md` draws :meth:`Pipeline.serve` in these words.

    parse -> route -> fingerprint -> admit -> choose -> lease -> upstream -> relay | respond

Everything with an opinion is elsewhere and pure; this file only puts it in order and gives back, on every path,
what it took: the place in the queue, the lease at the backend, the connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from time import perf_counter_ns

from ..cache.outcome import NoCache, Outcome
from ..cache.rows import Tally, TallyRow
from .admission import Admission
from .buffers import Answer, Buffers
from .dialects import WORDS
from .endpoints import RESPONSES, Endpoint, StoredResponse
from .errors import Fault, Kind
from .faults import fault_of
from .fingerprint import fingerprint
from .fleet import Backend, Fleet, Model
from .gathered import Gathered
from .lease import Lease
from .metrics import PAUSES, RETRIES, UPSTREAM_FAULTS, Metrics
from .parse import Parser, Request
from .policies.least_connections import least_connections
from .raw import Out, RawRequest
from .relay import UNKNOWN_LIMIT_BYTES, Relay
from .respond import HeaderTable, is_event_stream
from .retry import NEVER_OPENED, SHUN_S, Again, RetryBudget, after_fault, after_status
from .seldom import Seldom
from .sticky import Sticky
from .upstream.call import Call
from .upstream.fault import BodyTooLarge, UpstreamFault

log = logging.getLogger(__name__)

TENANT = "default"

_MISS_FIELDS = (("x-penstock-cache", Outcome.MISS.value),)
_CACHE_FIELDS = {
    reason: (("x-penstock-cache", Outcome.BYPASS.value), ("x-penstock-cache-reason", reason.value))
    for reason in NoCache
}

_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._~-]{1,128})"')


class Life:
    """What is known of one request while it lives, for metrics, logs and whoever must end it."""

    model = ""
    status = 0
    upstream_ns = 0
    queued_ns = 0
    relay: Relay | None = None


class Pipeline:
    """Serves requests on one loop; holds what requests of this worker share."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        row: TallyRow,
        tally: Tally,
        slot: int,
        sticky: Sticky,
        metrics: Metrics,
        buffers: Buffers,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        parser: Parser | None = None,
    ) -> None:
        self.fleet = fleet
        self.admission = Admission(row, tally, loop=loop, clock=clock)
        self._parser = parser or Parser()
        self._headers = HeaderTable()
        self._row = row
        self._tally = tally
        self._slot = slot
        self._sticky = sticky
        self._metrics = metrics
        self._buffers = buffers
        self._loop = loop
        self._clock = clock
        self._budget = RetryBudget()
        self._seldom = Seldom()
        self._turn = 0
        self._others: dict[int, int] = {}
        self._others_at = -1.0

    async def serve(self, endpoint: Endpoint, raw: RawRequest, out: Out, life: Life) -> None:
        """Answer one request to a proxied endpoint; raises :class:`Fault` for what the client must be told."""
        request = self._parser.parse(endpoint, raw)
        route = self.fleet.route(request.model)
        model = route.model
        life.model = model.name
        key = fingerprint(request, model.key_head(endpoint, TENANT), model.name, raw.query)
        body = request.body if route.alias is None else route.alias.rewrite(request)
        if not self.admission.try_enter(model):
            await self._queue(model, life)
        try:
            target = f"{endpoint.path}?{raw.query}" if raw.query else endpoint.path
            pinned = self._pinned(request, model) if endpoint is RESPONSES else None
            lease, call, backend, attempts = await self._upstream(
                model, "POST", target, raw, body, life, pinned
            )
            try:
                headers, media = self._head(call, raw, backend, attempts)
                headers.extend(_CACHE_FIELDS[key] if isinstance(key, NoCache) else _MISS_FIELDS)
                if endpoint is RESPONSES:
                    self._remember(call, backend)
                if call.complete and not is_event_stream(media):
                    life.status = call.status
                    out.respond(call.status, headers, call.body)
                else:
                    await self._answer(endpoint, call, headers, media, out, life)
            finally:
                if not call.complete:
                    call.abort()
                lease.settle()
        finally:
            self.admission.leave(model)

    async def stored(self, stored: StoredResponse, raw: RawRequest, out: Out, life: Life) -> None:
        """Answer a call about one stored response: by the backend that holds it, else by asking each in turn.

        A backend that fails does not end the search; when no other has it, its failure is the answer: it might have it.
        """
        backend = self._sticky.find(stored.id, self.fleet.backends)
        candidates = [backend] if backend is not None else [b for b in self.fleet.backends if b.up]
        if not candidates:
            raise Fault(Kind.NO_BACKEND, "no backend is healthy", retry_after_s=2.0)
        by_backend = {b.index: model for model in self.fleet.models for b in model.backends}
        target = f"{stored.target}?{raw.query}" if raw.query else stored.target
        failed: Fault | None = None
        for number, candidate in enumerate(candidates, start=1):
            model = by_backend[candidate.index]
            life.model = model.name
            if not self.admission.try_enter(model):
                await self._queue(model, life)
            try:
                try:
                    lease, call, _, _ = await self._upstream(
                        model, stored.method, target, raw, raw.body or None, life, candidate
                    )
                except Fault as fault:
                    failed = fault
                    continue
                try:
                    if call.status == 404 and len(candidates) > 1:
                        continue
                    headers, media = self._head(call, raw, candidate, number)
                    await self._answer(RESPONSES, call, headers, media, out, life)
                    return
                finally:
                    call.abort()
                    lease.settle()
            finally:
                self.admission.leave(model)
        raise failed or Fault(Kind.NOT_FOUND, f"no backend has a response with the id '{stored.id}'")

    # ---- admit, choose

    async def _queue(self, model: Model, life: Life) -> None:
        started = perf_counter_ns()
        try:
            await self.admission.wait(model)
        except Fault as fault:
            log.info("%s model=%s", fault.kind.value, model.name)
            raise
        finally:
            life.queued_ns += perf_counter_ns() - started

    def _choose(self, model: Model, tried: tuple[Backend, ...]) -> Backend | None:
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

    def _pinned(self, request: Request, model: Model) -> Backend | None:
        previous = request.fields.get("previous_response_id") if request.fields is not None else None
        return self._sticky.find(previous, model.backends) if isinstance(previous, str) else None

    def _remember(self, call: Call, backend: Backend) -> None:
        if call.status == 200:
            match = _RESPONSE_ID.search(call.body, 0, 4096)
            if match is not None:
                self._sticky.put(match[1].decode("ascii"), backend.index)

    # ---- upstream

    async def _upstream(
        self,
        model: Model,
        method: str,
        target: str,
        raw: RawRequest,
        body: bytes | None,
        life: Life,
        pinned: Backend | None,
    ) -> tuple[Lease, Call, Backend, int]:
        """One answer that has begun, and the lease it is held under; raises :class:`Fault` after the last try."""
        budget = self._budget
        budget.deposit()
        length = "0" if body is None else str(len(body))
        fields = f"{raw.forwarded}x-request-id: {raw.request_id}\r\ncontent-length: {length}\r\n\r\n"
        tried: tuple[Backend, ...] = ()
        started = self._clock()
        fresh = False
        attempt = 0
        backend = pinned or self._choose(model, tried)
        if backend is None:
            raise Fault(Kind.NO_BACKEND, f"no backend of '{model.name}' is healthy", retry_after_s=2.0)
        while True:
            attempt += 1
            head = (backend.head(method, target) + fields).encode("ascii")
            lease = Lease(self._row, backend.index)
            began = perf_counter_ns()
            try:
                call = await backend.pool.call(head, body, model.timeouts, total_started=started, fresh=fresh)
            except UpstreamFault as fault:
                lease.settle()
                if fault.kind in NEVER_OPENED:
                    backend.shunned_until = self._clock() + SHUN_S
                self._metrics.count(UPSTREAM_FAULTS, model.name, backend.name, fault.kind.value)
                other = self._choose(model, (*tried, backend)) if pinned is None else None
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
                    return lease, call, backend, attempt
                other = self._choose(model, (*tried, backend)) if pinned is None else None
                if after_status(call.status, attempt, other is not None, budget) is Again.NO:
                    return lease, call, backend, attempt
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

    # ---- relay or respond

    def _head(
        self, call: Call, raw: RawRequest, backend: Backend, attempts: int
    ) -> tuple[list[tuple[str, str]], str]:
        headers, media = self._headers.downstream(call.headers)
        headers.append(("x-request-id", raw.request_id))
        headers.append(("x-penstock-backend", backend.name))
        headers.append(("x-penstock-attempts", str(attempts)))
        return headers, media

    async def _answer(
        self,
        endpoint: Endpoint,
        call: Call,
        headers: list[tuple[str, str]],
        media: str,
        out: Out,
        life: Life,
    ) -> None:
        # an error that calls itself an event stream passes as it is: it owes nobody a terminal event
        events = 200 <= call.status < 300 and is_event_stream(media)
        life.status = call.status
        if call.complete and not events:
            out.respond(call.status, headers, call.body)
        elif events:
            await self._stream(endpoint, call, headers, out, life)
        elif call.content_length is not None and (
            call.content_length <= UNKNOWN_LIMIT_BYTES or out.acked() is not None
        ):
            # long and of known length: relayed under its own length, so that a cut is seen by the client
            headers.append(("content-length", str(call.content_length)))
            await self._relay(Relay(call, out.stream(call.status, headers), None, self._loop), call, life)
        else:
            answer = self._buffers.answer(call)
            try:
                await self._whole(call, answer, headers, out, life)
            finally:
                answer.release()

    async def _stream(
        self, endpoint: Endpoint, call: Call, headers: list[tuple[str, str]], out: Out, life: Life
    ) -> None:
        end = WORDS[endpoint.dialect].stream_end()
        relay = Relay(call, out.stream(call.status, headers), end, self._loop)
        await self._relay(relay, call, life)
        if end.status != 200:
            life.status = end.status

    async def _relay(self, relay: Relay, call: Call | Gathered, life: Life) -> None:
        life.relay = relay
        call.attach(relay)
        try:
            fault = relay.done.result() if relay.done.done() else await relay.done
        finally:
            if relay.pauses:
                self._metrics.count(PAUSES, n=relay.pauses)
        if fault is not None:
            raise fault

    async def _whole(
        self, call: Call, answer: Answer, headers: list[tuple[str, str]], out: Out, life: Life
    ) -> None:
        """Gather an answer of unknown length; a long one stays here, and counted, until its client takes it."""
        body = await self._gather(call, answer)
        if len(body) <= UNKNOWN_LIMIT_BYTES or out.acked() is None:
            out.respond(call.status, headers, bytes(body))
            return
        headers.append(("content-length", str(len(body))))
        gathered = Gathered(body)
        del body
        try:
            relay = Relay(gathered, out.stream(call.status, headers), None, self._loop)
            await self._relay(relay, gathered, life)
        finally:
            gathered.abort()

    async def _gather(self, call: Call, answer: Answer) -> bytes | bytearray:
        limit = self.fleet.config.limits.max_response
        try:
            return await call.read_all(limit, answer.arrived)
        except BodyTooLarge:
            raise Fault(
                Kind.UPSTREAM_TOO_LARGE,
                f"the backend's answer of unknown length is over limits.max_response ({limit} bytes)",
            ) from None
        except UpstreamFault as fault:
            raise fault_of(fault) from None
