"""One connection to a backend: an asyncio protocol that feeds a reader and tells a call.

It carries one call at a time (no pipelining). Everything happens in ``data_received``: no task, no timer and
no queue belong to a connection; its deadline is a number that the pool's tick compares with the clock. It
knows the pool only as its ``Owner``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from .call import HOLD_BYTES, Call, CallTimeouts
from .fault import FaultKind, UpstreamFault
from .h1 import Refused, ResponseReader

#: a response announced no longer than this is given to its caller whole
WHOLE_BYTES = 64 * 1024
#: requests above this may still be in the transport's buffer when the answer comes
_LONG_REQUEST_BYTES = 16 * 1024
_NEVER = float("inf")


class Owner(Protocol):
    """What a connection tells its pool."""

    def to_send(self, connection: Connection, /) -> None:
        """It has a request to send; ``send`` is to be called within this turn of the loop."""

    def finished(self, connection: Connection, reusable: bool) -> None:
        """Its call is complete. Not reusable: it is about to be closed."""

    def gone(self, connection: Connection) -> None:
        """It is closed, or as good as closed: forget it. May come twice."""


class Connection(asyncio.Protocol):
    """``start`` writes a request and returns the call whose future its head (or whole response) resolves."""

    __slots__ = (
        "__weakref__",
        "_call",
        "_clock",
        "_long",
        "_loop",
        "_owner",
        "_reader",
        "_reading",
        "_transport",
        "_unsent",
        "deadline",
        "idle_since",
        "idle_until",
        "served",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._owner = owner
        self._loop = loop
        self._clock = clock
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None
        self._long = False
        self._reading = True
        self._unsent: tuple[bytes, ...] = ()
        #: when the call in progress fails, on the pool's clock
        self.deadline = _NEVER
        #: since when it waits for a call, and until when it may
        self.idle_since = self.idle_until = 0.0
        #: calls completed so far
        self.served = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport while there is one: for the TLS session and for tests."""
        return self._transport

    @property
    def usable(self) -> bool:
        """Whether a call may start: connected, idle and not being closed."""
        transport = self._transport
        return transport is not None and self._call is None and not transport.is_closing()

    @property
    def keep_alive_s(self) -> float | None:
        """How long the server said it keeps an idle connection (``Keep-Alive: timeout=``), if it did."""
        return self._reader.keep_alive_s

    def start(
        self,
        head: bytes,
        body: bytes | None,
        timeouts: CallTimeouts,
        now: float,
        total_deadline: float,
        cuts: list[int] | None = None,
    ) -> tuple[Call, asyncio.Future[None]]:
        """Write the request in one go and expect its response. ``body`` itself is passed on, not a copy."""
        transport = self._transport
        assert transport is not None
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        self._reader.begin(cuts)
        waiter = self._loop.create_future()
        call = Call(self, waiter, self.served > 0, timeouts.between_chunks_s, total_deadline)
        self._call = call
        first_byte_s = timeouts.first_byte_s
        deadline = now + first_byte_s if first_byte_s > 0 else _NEVER
        self.deadline = deadline if deadline < total_deadline else total_deadline
        self._long = body is not None and len(body) > _LONG_REQUEST_BYTES
        self._unsent = (head, body) if body else (head,)
        self._owner.to_send(self)
        return call, waiter

    def send(self) -> None:
        """Write the request that was started; the pool calls this once all of the loop's turn have been."""
        unsent, self._unsent = self._unsent, ()
        if unsent and self._transport is not None:
            self._transport.writelines(unsent)

    def pause(self) -> None:
        """Stop reading; the clock between chunks stands still."""
        call, transport = self._call, self._transport
        if call is None or transport is None:
            return
        if self._reading:
            self._reading = False
            transport.pause_reading()
        self.deadline = call.total_deadline

    def resume(self) -> None:
        """Read again; the clock between chunks starts anew."""
        call, transport = self._call, self._transport
        if call is None or transport is None or self._reading:
            return
        self._reading = True
        self._expect_more(call)
        transport.resume_reading()

    def drop(self) -> None:
        """Close at once; a call in progress hears nothing of it."""
        self._call = None
        self._unsent = ()
        self._owner.gone(self)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self._owner.gone(self)
        if self._transport is not None:
            self._transport.close()

    def expire(self, now: float) -> None:
        """The deadline has passed."""
        call = self._call
        if call is not None:
            self._fail(call, call.overdue(now), "")

    def fail(self, kind: FaultKind, detail: str) -> None:
        """End the call in progress with a fault, from outside."""
        if self._call is not None:
            self._fail(self._call, kind, detail)

    # -- asyncio.Protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            # nobody asked: not to be taken for the answer to the next request
            self.drop()
            return
        reader = self._reader
        call.got_bytes = True
        try:
            reader.feed(data)
        except Refused as refused:
            if reader.pieces and call.waiter is None:
                call.push(reader.take())
            # the sink may have aborted the call just now
            if self._call is call:
                self._fail(call, refused.kind, refused.detail)
            return
        if reader.done:
            self._complete(call, reader.reusable)
            return
        if not reader.pieces:
            return
        call.got_body = True
        waiter = call.waiter
        if waiter is None:
            self._expect_more(call)
            if call.push(reader.take()):
                self.pause()
            return
        length = reader.content_length
        self._expect_more(call)
        if length is not None and length <= WHOLE_BYTES:
            return
        self._fill_head(call)
        call.body = body = reader.take()
        call.waiter = None
        if not waiter.done():
            waiter.set_result(None)
        if len(body) > HOLD_BYTES:
            self.pause()

    def eof_received(self) -> None:
        call = self._call
        if call is None:
            self._owner.gone(self)
        elif self._reader.eof():
            self._complete(call, False)
        else:
            self._fail(call, FaultKind.CLOSED, "the connection ended before the response did")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        call = self._call
        if call is not None:
            self._fail(call, FaultKind.CLOSED, type(exc).__name__ if exc is not None else "closed")
        else:
            self._owner.gone(self)
        self._reader.close()

    # -- ends of a call ----------------------------------------------------------------------------

    def _expect_more(self, call: Call) -> None:
        between_s = call.between_chunks_s
        deadline = self._clock() + between_s if between_s > 0 else _NEVER
        self.deadline = deadline if deadline < call.total_deadline else call.total_deadline

    def _fill_head(self, call: Call) -> None:
        reader = self._reader
        call.status = reader.status
        call.headers = reader.headers
        call.content_length = reader.content_length
        call.chunked = reader.chunked

    def _complete(self, call: Call, reusable: bool) -> None:
        reader = self._reader
        body = reader.take() if reader.pieces else b""
        self._call = None
        self.deadline = _NEVER
        self.served += 1
        transport = self._transport
        if transport is None or transport.is_closing():
            reusable = False
        elif self._long and transport.get_write_buffer_size():
            # answered before the request was read: its rest must not become the next request's beginning
            reusable = False
        call.connection = None
        waiter = call.waiter
        if waiter is not None:
            self._fill_head(call)
            call.body = body
            call.complete = True
        self._owner.finished(self, reusable)
        if not reusable and transport is not None:
            transport.abort() if self._long else transport.close()
        if waiter is not None:
            call.waiter = None
            if not waiter.done():
                waiter.set_result(None)
            return
        if body:
            call.push(body)
        call.end()

    def _fail(self, call: Call, kind: FaultKind, detail: str) -> None:
        self._call = None
        self.deadline = _NEVER
        self._owner.gone(self)
        if self._transport is not None:
            self._transport.abort()
        call.fail(UpstreamFault(kind, detail, reused=call.reused, got_bytes=call.got_bytes))
