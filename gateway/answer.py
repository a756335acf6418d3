"""Gives one answer to its client: whole where it is whole, else relayed as it comes, or gathered first.

A stream is relayed as events, a long body of known length under its own length, so that a cut is seen by the client;
one of unknown length is gathered, and counted while it is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Protocol

from .buffers import Answer, Buffers
from .dialects import WORDS
from .dialects.refusal import refusal
from .endpoints import Dialect
from .errand import Errand
from .errors import Fault, Kind
from .faults import fault_of
from .gathered import Gathered, sliced
from .life import Life
from .meter import StreamMeter
from .metrics import INTER_TOKEN, PAUSES, Metrics
from .raw import Out, RawRequest
from .record import Record
from .relay import PAUSE_ABOVE_BYTES, UNKNOWN_LIMIT_BYTES, Relay, Upstream
from .respond import HeaderTable, is_event_stream
from .sent import Sent
from .upstream.call import Call
from .upstream.fault import BodyTooLarge, UpstreamFault

#: Header fields that are added to an answer.
Fields = Sequence[tuple[str, str]]


class Source(Upstream, Protocol):
    """What a relay is fed by: a call, a ticket for a flight, or what is here whole."""

    def attach(self, sink: Relay) -> None: ...


class Answering:
    """One worker's way back to clients. ``max_response`` may change at a reload (bytes)."""

    def __init__(
        self, metrics: Metrics, buffers: Buffers, max_response: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.max_response = max_response
        self._metrics = metrics
        self._buffers = buffers
        self._loop = loop
        self._headers = HeaderTable()

    def fields(self, sent: Sent) -> tuple[list[tuple[str, str]], str]:
        """The fields of an answer that every client may have, and its Content-Type."""
        return self._headers.downstream(sent.call.headers)

    def answer(
        self, errand: Errand, sent: Sent, more: Fields, out: Out, life: Life
    ) -> Coroutine[None, None, None] | None:
        """Give one client what a backend answers; ``more`` are fields of its own. What is still to be waited for."""
        call = sent.call
        fields, media = self.fields(sent)
        fields += mine(errand.raw, sent, more, life)
        life.status = call.status
        # an error that calls itself an event stream passes as it is: it owes nobody a terminal event
        if 200 <= call.status < 300 and is_event_stream(media):
            return self.stream(errand.endpoint.dialect, call, call.status, fields, out, life)
        if call.complete:
            if call.status < 300:
                life.told = call.body
            out.respond(call.status, fields, call.body)
            return None
        return self._long(call, fields, out, life)

    async def _long(self, call: Call, fields: list[tuple[str, str]], out: Out, life: Life) -> None:
        if (
            call.content_length is not None
            and not life.opened
            and (call.content_length <= UNKNOWN_LIMIT_BYTES or out.acked() is not None)
        ):
            # long and of known length: relayed under its own length, so that a cut is seen by the client
            fields.append(("content-length", str(call.content_length)))
            await self._relay(Relay(call, out.stream(call.status, fields), None, self._loop), call, life)
            return
        answer = self._buffers.answer(call)
        try:
            body = await self.gather(call, answer)
            if call.status < 300:
                life.told = body
            await self.whole(call.status, fields, body, out, life)
        finally:
            answer.release()

    async def stream(
        self,
        dialect: Dialect | None,
        source: Source,
        status: int,
        fields: list[tuple[str, str]],
        out: Out,
        life: Life,
        kept: bool = False,
    ) -> None:
        """Relay a stream to one client, to its terminal event; raises :class:`Fault` for how it failed.

        ``dialect`` is None for a body of known length, which ends where it ends. ``kept``: it comes from the cache,
        and says nothing of a backend.
        """
        if dialect is None and life.opened:
            raise refusal(status, b"")
        end = None if dialect is None else WORDS[dialect].stream_end()
        meter = None
        if end is not None and not kept:
            meter = life.meter = StreamMeter(self._metrics.histogram(INTER_TOKEN, life.model))
        relay = Relay(source, out.stream(status, fields), end, self._loop, life.said_bytes, meter)
        await self._relay(relay, source, life)
        if end is not None and end.status != 200:
            life.status = end.status

    async def _relay(self, relay: Relay, source: Source, life: Life) -> None:
        life.relay = relay
        source.attach(relay)
        try:
            fault = relay.done.result() if relay.done.done() else await relay.done
        finally:
            if relay.pauses:
                self._metrics.count(PAUSES, n=relay.pauses)
        if fault is not None:
            raise fault

    async def whole(
        self, status: int, fields: list[tuple[str, str]], body: bytes | bytearray, out: Out, life: Life
    ) -> None:
        """Give a body that is here whole; a long one stays here, and counted, until its client takes it."""
        life.status = status
        if life.opened or len(body) <= UNKNOWN_LIMIT_BYTES or out.acked() is None:
            out.respond(status, fields, bytes(body))
            return
        fields.append(("content-length", str(len(body))))
        gathered = Gathered(sliced(body))
        del body
        try:
            await self._relay(Relay(gathered, out.stream(status, fields), None, self._loop), gathered, life)
        finally:
            gathered.abort()

    def again(
        self, dialect: Dialect, record: Record, fields: list[tuple[str, str]], out: Out, life: Life
    ) -> Coroutine[None, None, None] | None:
        """Give an answer that was kept; what is still to be waited for.

        A long stream is counted until its client has it; raises :class:`Fault` 429 when the node holds too much.
        """
        life.status = record.status
        if not record.cuts:
            out.respond(record.status, fields, record.body)
        elif len(record.body) > PAUSE_ABOVE_BYTES:
            return self._again(dialect, record, fields, out, life)
        else:  # the server host's at once: no relay would pause before that
            out.stream(record.status, fields).send_all(list(record.pieces()))
        return None

    async def _again(
        self, dialect: Dialect, record: Record, fields: list[tuple[str, str]], out: Out, life: Life
    ) -> None:
        held = self._buffers.hold(len(record.body))
        gathered = Gathered(record.pieces())
        try:
            await self.stream(dialect, gathered, record.status, fields, out, life, kept=True)
        finally:
            gathered.abort()
            self._buffers.release(held)

    def account(self, call: Call) -> Answer:
        """The account of an answer that is to be gathered."""
        return self._buffers.answer(call)

    async def gather(self, call: Call, answer: Answer) -> bytes | bytearray:
        """An answer as a whole, counted as it comes; raises :class:`Fault` for one that is too long."""
        limit = self.max_response
        try:
            return await call.read_all(limit, answer.arrived)
        except BodyTooLarge:
            raise Fault(
                Kind.UPSTREAM_TOO_LARGE,
                f"the backend's answer of unknown length is over limits.max_response ({limit} bytes)",
            ) from None
        except UpstreamFault as fault:
            raise fault_of(fault) from None


def woken_for(life: Life) -> Fields:
    """The field that says how long a request waited for servers to wake, where it did."""
    return (("x-penstock-wake-ms", str(life.wake_ns // 1_000_000)),) if life.wake_ns else ()


def mine(raw: RawRequest, sent: Sent, more: Fields, life: Life) -> list[tuple[str, str]]:
    """The fields of an answer that are one client's own."""
    fields = [
        ("x-request-id", raw.request_id),
        ("x-penstock-backend", sent.backend.name),
        ("x-penstock-attempts", str(sent.attempts)),
        *more,
    ]
    if life.wake_ns:
        fields += woken_for(life)
    if sent.fallback:
        fields.append(("x-penstock-fallback", sent.fallback))
    return fields
