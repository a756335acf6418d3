"""One HTTP/2 connection to a backend: an asyncio protocol around a session, and its streams as calls see them.

As with HTTP/1.1 everything happens in ``data_received``, and deadlines are numbers that the pool's tick compares
with the clock. What one turn of the loop has to say is written in one go. Knows the pool only as its ``Owner``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from .call import HOLD_BYTES, Call, CallTimeouts
from .connection import WHOLE_BYTES
from .fault import FaultKind, UpstreamFault
from .h1 import Refused
from .h2 import Exchange, Session

_NEVER = float("inf")
#: after so long without a byte, while somebody waits, the server is asked whether it is there; and how long it may
#: take to answer. A peer that vanished would otherwise cost every stream its own deadline.
PING_AFTER_S = 10.0
PING_ANSWER_S = 10.0
#: of request bodies, said in one write
_UPLOAD_BYTES = 256 * 1024
#: answers to a peer's frames that it does not read
_UNREAD_LIMIT_BYTES = 256 * 1024


class Owner(Protocol):
    """What a connection tells its pool."""

    def is_calm(self) -> bool:
        """Whether a request is to be written at once: a turn of the loop would only delay it."""

    def finished(self, stream: Stream) -> None:
        """A stream's call is over. May come twice."""

    def changed(self, connection: H2Connection) -> None:
        """It may have room for streams that it had not before, or takes no more."""

    def gone(self, connection: H2Connection) -> None:
        """It is closed, or as good as closed: forget it. May come twice."""


class Stream:
    """One call on a connection: to the call it is the connection."""

    __slots__ = ("_exchange", "_reading", "call", "connection", "deadline")

    def __init__(self, connection: H2Connection, exchange: Exchange, deadline: float) -> None:
        self.connection = connection
        self.call: Call | None = None
        self._exchange = exchange
        self._reading = True
        #: when the call fails, on the pool's clock
        self.deadline = deadline

    # -- for the call ------------------------------------------------------------------------------

    def pause(self) -> None:
        """Acknowledge nothing more, so that the backend stops; the clock between chunks stands still."""
        call = self.call
        if call is not None:
            self._reading = False
            self._exchange.paused = True
            self.deadline = call.total_deadline

    def resume(self) -> None:
        """Go on, within the next turn of the loop; the clock between chunks starts anew."""
        call = self.call
        if call is None or self._reading:
            return
        self._reading = True
        self._exchange.paused = False
        self._expect_more(call)
        self.connection.wake(self)

    def drop(self) -> None:
        """Nobody wants the rest: tell the backend, and no more the call."""
        self.call = None
        self.connection.cancel(self._exchange)
        self._let_go()

    # -- for the connection and the pool -----------------------------------------------------------

    def go_on(self) -> None:
        """What came while the call was paused."""
        self.connection.session.acknowledge(self._exchange)
        self.advance()

    def advance(self) -> None:
        """The exchange has moved: tell the call."""
        call, exchange = self.call, self._exchange
        if call is None:
            return
        if exchange.got_bytes:
            call.got_bytes = True
        fault = exchange.fault
        if fault is not None:
            if exchange.pieces and call.waiter is None and self._reading:
                call.push(exchange.take())
            # the sink may have aborted the call just now
            if self.call is call:
                self.fail(fault.kind, fault.detail, unseen=exchange.unseen)
            return
        if not self._reading:
            return
        if exchange.done:
            self._complete(call)
            return
        if not exchange.pieces:
            return
        call.got_body = True
        waiter = call.waiter
        self._expect_more(call)
        if waiter is None:
            if call.push(exchange.take()):
                self.pause()
            return
        length = exchange.content_length
        if length is not None and length <= WHOLE_BYTES:
            return
        self._fill_head(call)
        call.body = body = exchange.take()
        call.waiter = None
        if not waiter.done():
            waiter.set_result(None)
        if len(body) > HOLD_BYTES:
            self.pause()

    def expire(self, now: float) -> None:
        """The deadline has passed."""
        call = self.call
        if call is not None:
            self.fail(call.overdue(now), "")

    def fail(self, kind: FaultKind, detail: str, *, unseen: bool = False, lost: bool = False) -> None:
        """End the call with a fault. ``lost``: the connection ended, without a word since it was last idle."""
        call = self.call
        if call is None:
            return
        self.call = None
        self.connection.cancel(self._exchange)
        self._let_go()
        call.fail(
            UpstreamFault(kind, detail, reused=call.reused and lost, got_bytes=call.got_bytes, unseen=unseen)
        )

    def _complete(self, call: Call) -> None:
        exchange = self._exchange
        body = exchange.take()
        self.call = None
        call.connection = None
        waiter = call.waiter
        if waiter is not None:
            self._fill_head(call)
            call.body = body
            call.complete = True
        self._let_go()
        if waiter is not None:
            call.waiter = None
            if not waiter.done():
                waiter.set_result(None)
            return
        if body:
            call.push(body)
        call.end()

    def _let_go(self) -> None:
        self.deadline = _NEVER
        self._exchange.owner = None
        self.connection.owner.finished(self)

    def _expect_more(self, call: Call) -> None:
        between_s = call.between_chunks_s
        deadline = self.connection.clock() + between_s if between_s > 0 else _NEVER
        self.deadline = deadline if deadline < call.total_deadline else call.total_deadline

    def _fill_head(self, call: Call) -> None:
        exchange = self._exchange
        call.status = exchange.status
        call.headers = exchange.headers
        call.content_length = exchange.content_length
        call.chunked = exchange.content_length is None


class H2Connection(asyncio.Protocol):
    """``ready`` resolves when the server has greeted; then ``start`` begins a call on a stream of its own."""

    __slots__ = (
        *("__weakref__", "_flushing", "_loop", "_pinged_at", "_read", "_read_when_idle", "_seen", "_since"),
        *(
            "_stuck",
            "_transport",
            "_unread_bytes",
            "clock",
            "idle_since",
            "owner",
            "ready",
            "served",
            "session",
        ),
    )

    def __init__(
        self,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        scheme: str,
        max_streams: int,
    ) -> None:
        self.owner = owner
        self.clock = clock
        self.session = Session(scheme, max_streams)
        self.ready: asyncio.Future[None] = loop.create_future()
        #: since when it has no stream
        self.idle_since = clock()
        #: calls begun so far
        self.served = 0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        # reads so far: now, when it was last idle, and at the last look of the tick, which was at `_since`
        self._read = self._read_when_idle = self._seen = 0
        self._since = self.idle_since
        self._pinged_at: float | None = None
        self._stuck = False
        self._unread_bytes = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport while there is one: for the TLS session and for tests."""
        return self._transport

    @property
    def streams(self) -> int:
        """Streams in progress."""
        return len(self.session.exchanges)

    @property
    def usable(self) -> bool:
        """Whether it takes streams at all."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self.session.leaving

    def start(
        self,
        head: bytes,
        body: bytes | None,
        timeouts: CallTimeouts,
        now: float,
        total_deadline: float,
        cuts: list[int] | None,
    ) -> tuple[Call, Stream, asyncio.Future[None]]:
        """Begin a request. Raises UpstreamFault."""
        session = self.session
        if not session.exchanges:
            self._read_when_idle = self._seen = self._read
            self._since = now
            self._pinged_at = None
        try:
            exchange = session.start(head, body, cuts)
        except Refused as refused:
            session.leaving = True
            raise UpstreamFault(FaultKind.CLOSED, refused.detail, unseen=True) from None
        first_byte_s = timeouts.first_byte_s
        deadline = now + first_byte_s if first_byte_s > 0 else _NEVER
        waiter = self._loop.create_future()
        exchange.owner = stream = Stream(self, exchange, min(deadline, total_deadline))
        stream.call = call = Call(stream, waiter, self.served > 0, timeouts.between_chunks_s, total_deadline)
        self.served += 1
        if self.owner.is_calm():
            self.flush()
        else:
            self._flush_soon()
        return call, stream, waiter

    def cancel(self, exchange: Exchange) -> None:
        """Reset a stream, if it is still open."""
        if self.session.cancel(exchange):
            self._flush_soon()
            self._check_idle()

    def wake(self, stream: Stream) -> None:
        """Let a stream go on in the next turn of the loop: its caller may be in the middle of something."""
        self._loop.call_soon(self._wake, stream)

    def _wake(self, stream: Stream) -> None:
        stream.go_on()
        self.flush()

    def flush(self, answering: bool = False) -> None:
        """Write what there is to say, request bodies as far as windows and the socket's buffer allow."""
        self._flushing = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        session = self.session
        uploaded = 0 if self._stuck else session.upload(_UPLOAD_BYTES)
        data = session.outgoing()
        if not data:
            return
        if answering and self._stuck:
            self._unread_bytes += len(data)
            if self._unread_bytes > _UNREAD_LIMIT_BYTES:
                self.break_off(FaultKind.PROTOCOL, "the server does not read the answers to its frames")
                return
        transport.write(data)
        if uploaded >= _UPLOAD_BYTES:
            self._flush_soon()  # unless the socket has had enough for now

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def tick(self, now: float) -> None:
        """Look whether the server is still there, as long as somebody waits for it."""
        if not self.session.exchanges:
            return
        if self._read != self._seen:
            self._seen = self._read
            self._since = now
            self._pinged_at = None
        elif self._pinged_at is not None:
            if now - self._pinged_at >= PING_ANSWER_S:
                self.break_off(FaultKind.CLOSED, "the server does not answer a PING")
        elif now - self._since >= PING_AFTER_S:
            self._pinged_at = now
            self.session.ping()
            self.flush()

    def close(self) -> None:
        """Say goodbye and close; for a connection without streams."""
        self.owner.gone(self)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self.session.goodbye()
            transport.write(self.session.outgoing())
            transport.close()

    def break_off(self, kind: FaultKind, detail: str) -> None:
        """Close at once; all streams fail."""
        self.session.leaving = True
        self.owner.gone(self)
        if not self.ready.done():
            self.ready.set_exception(UpstreamFault(FaultKind.CONNECT_FAILED, detail))
        if self._transport is not None:
            self._transport.abort()
        lost = kind is FaultKind.CLOSED and self._read == self._read_when_idle
        for exchange in list(self.session.exchanges.values()):
            if exchange.owner is not None:
                exchange.owner.fail(kind, detail, lost=lost)

    def _check_idle(self) -> None:
        session = self.session
        if not session.exchanges:
            self.idle_since = self.clock()
            if session.leaving:
                self.close()

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.ready.set_exception(
                UpstreamFault(FaultKind.TLS_FAILED, "the server does not agree on HTTP/2 (ALPN h2)")
            )  # and whoever awaits that closes
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        self._read += 1
        session = self.session
        before = len(session.exchanges)
        refused: Refused | None = None
        try:
            session.receive(data)
        except Refused as error:
            refused = error
        for exchange in list(session.touched):
            stream: Stream | None = exchange.owner
            if stream is not None:
                stream.advance()
        session.touched.clear()
        if refused is not None:
            if self._transport is not None:
                self._transport.write(session.outgoing())
            self.break_off(refused.kind, refused.detail)
            return
        self.flush(True)
        if session.greeted and not self.ready.done():
            self.ready.set_result(None)
        if session.leaving or len(session.exchanges) != before:
            self._check_idle()
        self.owner.changed(self)

    def pause_writing(self) -> None:
        self._stuck = True
        self._unread_bytes = 0

    def resume_writing(self) -> None:
        self._stuck = False
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.break_off(FaultKind.CLOSED, type(exc).__name__ if exc is not None else "closed")
        self.session.end()
