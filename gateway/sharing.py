"""One upstream call for all who ask the same at the same time, in this worker and in the others.

The first to ask leads: its task asks upstream, and goes on even when its own client has left, as long as somebody
else waits for the answer. Everybody else follows, from this worker's memory or over the leader's socket. Who finds
its leader gone before the answer began starts again: it looks whether the answer is kept by now, and one of those
who were left leads (the mark in shared memory decides which).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter_ns

from ..cache.l2 import Lease
from ..cache.marks import Claim
from ..cache.outcome import Outcome
from .answer import Answering, mine, woken_for
from .dispatch import Dispatch
from .endpoints import Dialect, Endpoint
from .errand import Errand
from .errors import Fault
from .fleet import Model
from .flight import Flight
from .flights import Flights
from .life import Life
from .metrics import FLIGHTS, Metrics
from .raw import ClientGone, Out, RawRequest
from .recall import Kept, Question, Recall
from .respond import is_event_stream
from .sent import Sent
from .ticket import Head, LeaderLost, Ticket
from .turn import Turn
from .upstream.call import Call

log = logging.getLogger(__name__)

_MISSED, _JOINED = Outcome.MISS.value, Outcome.COALESCED.value
# an enum's members are looked up slowly in Python 3.11 (70 ns)
_MINE, _OTHER = Lease.MINE, Lease.OTHER
_MISS = (("x-penstock-cache", _MISSED),)
_COALESCED = ("x-penstock-cache", _JOINED)

#: Turns of the loop that a mark is tried for while another process writes beside it (microseconds each).
_BUSY_TURNS = 20
#: A mark means nothing after this long; a leader that hangs is found by its heartbeat long before.
_LONGEST_S = 86_400.0
#: Leaders that may be lost under one request before it asks upstream by itself.
_LOST_LEADERS = 8


class Sharing:
    """One worker's part in it. ``lease_s``: how long a stream waits for another node; ``clock`` is L2's."""

    def __init__(
        self,
        flights: Flights,
        recall: Recall,
        dispatch: Dispatch,
        answering: Answering,
        metrics: Metrics,
        turn: Turn,
        *,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._flights = flights
        self._recall = recall
        self._dispatch = dispatch
        self._answering = answering
        self._metrics = metrics
        self._turn = turn
        #: whole answers that are still to be kept, at the end of the loop's turn
        self._answered: list[tuple[Flight, Question, int, list[tuple[str, str]], bytes, Lease]] = []

    def fly(
        self, question: Question, errand: Errand, lease: Lease, out: Out, life: Life
    ) -> Coroutine[None, None, None]:
        """Answer a question that is not kept: by asking upstream, or with the answer that somebody is asking for."""
        flight = self._flights.lead(question.flight, _LONGEST_S)
        if flight is None:
            return self._fly(question, errand, lease, out, life)
        return self._lead(flight, question, errand, lease, out, life)

    async def _fly(self, question: Question, errand: Errand, lease: Lease, out: Out, life: Life) -> None:
        """As :meth:`fly`, when somebody else has the question already or nobody can tell."""
        key, flights = question.flight, self._flights
        found: Flight | Claim | tuple[int, int] = flights.get(key) or flights.claim(key, _LONGEST_S)
        busy = lost = 0
        while found is not Claim.FULL and lost < _LOST_LEADERS and busy < _BUSY_TURNS:
            if found is Claim.LED:
                await self._lead(flights.open(key), question, errand, lease, out, life)
                return
            if found is Claim.BUSY:
                busy += 1
                await asyncio.sleep(0)
            else:
                ticket: Ticket = found.join() if isinstance(found, Flight) else flights.remote(found, key)
                try:
                    await self._follow(ticket, errand, out, life)
                    return
                except LeaderLost:
                    lost += 1
                    self._metrics.count(FLIGHTS, "lost")
                kept = self._recall.near(question)
                if kept is not None:
                    rest = self.give(kept, errand.endpoint, errand.raw, out, life)
                    if rest is not None:
                        await rest
                    return
            found = flights.get(key) or flights.claim(key, _LONGEST_S)
        await self.alone(question, errand, lease, out, life)

    async def alone(self, question: Question, errand: Errand, lease: Lease, out: Out, life: Life) -> None:
        """Ask upstream for this request alone, and keep the answer."""
        await self._lead(self._flights.private(question.flight), question, errand, lease, out, life)

    def give(
        self, kept: Kept, endpoint: Endpoint, raw: RawRequest, out: Out, life: Life
    ) -> Coroutine[None, None, None] | None:
        """Give an answer that is kept; what is still to be waited for."""
        life.cache = kept.outcome
        return self._answering.again(endpoint.dialect, kept.record, kept.fields(raw.request_id), out, life)

    # ---- leading

    async def _lead(
        self, flight: Flight, question: Question, errand: Errand, lease: Lease, out: Out, life: Life
    ) -> None:
        """Admit, choose, lease, ask, keep, and share what comes."""
        stored = later = False
        recall, model = self._recall, errand.model
        try:
            if question.wanted.shared:
                kept: Kept | None = None
                if self._flights.cleared_ns >= question.asked_ns:
                    # somebody may have led, kept the answer and let go between our look and our claim
                    kept = recall.near(question)
                if kept is None and lease is _OTHER:
                    # a stream is begun by oneself rather than waited for to its end
                    patience_s = self.lease_s if question.request.stream else _deadline_s(model)
                    found = await recall.awaited(question, self._clock() + patience_s)
                    if isinstance(found, Lease):
                        lease = found
                    else:
                        kept = found
                if kept is not None:
                    self._flights.close(flight)
                    rest = self.give(kept, errand.endpoint, errand.raw, out, life)
                    if rest is not None:
                        await rest
                    return
                if lease is _MINE:
                    recall.hold(question)
            life.cache = _MISSED
            life.flight = flight
            flight.on_last_left = life.abandon
            if question.request.stream:
                errand.cuts = []
            sent = await self._dispatch.send(errand, life)
            try:
                call = sent.call
                status = call.status
                fields, media = self._answering.fields(sent)
                events = 200 <= status < 300 and is_event_stream(media)
                if call.complete and not events and not sent.fallback:
                    # who asks again before it is kept finds the flight
                    flight.respond(Head(status, fields, media, call.body))
                    later = True
                    if not self._answered:
                        self._turn.add(self._settle_all)
                    self._answered.append((flight, question, status, fields, call.body, lease))
                    if life.left:
                        raise ClientGone
                    life.status = status
                    if status < 300:
                        life.told = call.body
                    out.respond(status, fields + mine(errand.raw, sent, _MISS, life), call.body)
                elif events or _outgrows(call, recall.max_entry, out):
                    if not events:
                        fields.append(("content-length", str(call.content_length)))
                    head = Head(status, fields, media, None)
                    stored = await self._share_stream(flight, question, errand, sent, head, out, life)
                else:
                    head = Head(status, fields, media, None)
                    stored = await self._share_whole(flight, question, errand, sent, head, out, life)
            finally:
                sent.end()
        except Fault as fault:
            flight.fail(fault)
            raise
        finally:
            life.flight = None
            if not later:
                self._flights.close(flight)
                if lease is _MINE and not stored:
                    recall.give_up(question)

    def _settle_all(self) -> None:
        """Keep whole answers, and end their flights."""
        answered, self._answered = self._answered, []
        self._metrics.count(FLIGHTS, "led", n=len(answered))
        recall = self._recall
        for flight, question, status, fields, body, lease in answered:
            stored = False
            try:
                stored = recall.keep(question, status, fields, body, None)
            except Exception:
                log.exception("keep_failed")
            flight.close()
            if lease is _MINE and not stored:
                recall.give_up(question)

    async def _share_whole(
        self, flight: Flight, question: Question, errand: Errand, sent: Sent, head: Head, out: Out, life: Life
    ) -> bool:
        """As the end of :meth:`_lead`, for an answer that is still to be gathered."""
        self._metrics.count(FLIGHTS, "led")
        account = self._answering.account(sent.call)
        try:
            head.body = body = await self._answering.gather(sent.call, account)
            # what another model said is no answer to this question
            stored = not sent.fallback and self._recall.keep(question, head.status, head.headers, body, None)
            flight.respond(head)
            if head.status < 300:
                life.told = body
            if life.left:
                raise ClientGone
            fields = head.headers + mine(errand.raw, sent, _MISS, life)
            await self._answering.whole(head.status, fields, body, out, life)
        finally:
            account.release()
        return stored

    async def _share_stream(
        self, flight: Flight, question: Question, errand: Errand, sent: Sent, head: Head, out: Out, life: Life
    ) -> bool:
        self._metrics.count(FLIGHTS, "led")
        place = flight.lead()  # taken first: what has come already may be too long for anybody to join
        flight.begin(head, sent.call)
        try:
            if life.left:
                raise ClientGone
            fields = [*head.headers, *mine(errand.raw, sent, _MISS, life)]
            await self._answering.stream(_dialect(errand, head), place, head.status, fields, out, life)
        except (Fault, ClientGone) as failure:
            if isinstance(failure, Fault):
                life.fault = failure
            # its own client is gone; others want the rest, or there is no more to come
            if flight.leave_leader() or flight.ended:
                await self._finish(flight, question, errand, sent, head)
                life.told = b"".join(flight.pieces or ())  # a meter has seen some of it at most
            raise
        return await self._finish(flight, question, errand, sent, head)

    async def _finish(
        self, flight: Flight, question: Question, errand: Errand, sent: Sent, head: Head
    ) -> bool:
        """Wait for the stream's end, and keep it; whether it was kept."""
        if await flight.finished is not None:
            return False
        pieces, cuts = flight.pieces, errand.cuts
        if pieces is None or sent.fallback:
            return False
        if not cuts:  # no chunks: cut where the reads were
            cuts = list(itertools.accumulate(map(len, pieces)))
        return self._recall.keep(question, head.status, head.headers, b"".join(pieces), cuts)

    # ---- following

    async def _follow(self, ticket: Ticket, errand: Errand, out: Out, life: Life) -> None:
        """Answer with what somebody else is told, a fault too; raises :class:`LeaderLost` when nobody is."""
        life.cache = _JOINED
        model, hold = errand.model, self._dispatch.hold
        waited, woken = perf_counter_ns(), life.wake_ns
        if model.pool is not None:
            hold.follow(model, life, errand.streams)
        try:
            try:
                head = await ticket.head()
            finally:
                if model.pool is not None:
                    hold.unfollow(model, life)
                life.upstream_ns += perf_counter_ns() - waited - (life.wake_ns - woken)
            self._metrics.count(FLIGHTS, "followed")
            fields = [*head.headers, ("x-request-id", errand.raw.request_id), _COALESCED, *woken_for(life)]
            if head.body is not None:
                await self._answering.whole(head.status, fields, head.body, out, life)
            else:
                dialect = _dialect(errand, head)
                if dialect is None and out.acked() is None:
                    raise LeaderLost  # too long to be sent unpaced: its own call's answer is gathered
                await self._answering.stream(dialect, ticket, head.status, fields, out, life)
        finally:
            ticket.abort()


def _outgrows(call: Call, limit_bytes: int, out: Out) -> bool:
    """Whether an answer says that it is too long to be kept: it goes on as it comes, as without a cache."""
    length = call.content_length
    return length is not None and length > limit_bytes and not call.complete and out.acked() is not None


def _dialect(errand: Errand, head: Head) -> Dialect | None:
    """In whose words a stream that follows ``head`` ends; None where it is a long body of known length."""
    events = 200 <= head.status < 300 and is_event_stream(head.media)
    return errand.endpoint.dialect if events else None


def _deadline_s(model: Model) -> float:
    """By when an answer has begun, or never will."""
    limits = model.timeouts
    waking_s = model.pool.ready_timeout_s if model.pool is not None else 0.0
    return waking_s + model.queue_timeout_s + limits.connect_s + limits.first_byte_s
