"""One HTTP/2 connection to a backend: an asyncio protocol around a session.

As with HTTP/1.1 everything happens in ``data_received``, and deadlines are numbers that the pool's tick compares
with the clock. What one turn of the loop has to say is written in one go. Knows the pool only as its ``Owner``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from .call import Call, CallTimeouts
from .fault import FaultKind, UpstreamFault
from .h1 import Refused
from .h2 import Exchange, Session
from .h2_stream import NEVER, Stream

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
        deadline = now + first_byte_s if first_byte_s > 0 else NEVER
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
