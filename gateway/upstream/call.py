"""One call to a backend, as its caller sees it: a head, then either the whole body or a push of its pieces.

Nothing here waits. The connection pushes into the call, the call pushes into the caller's sink, and
back-pressure goes the other way by ``pause`` and ``resume``. Knows no pool, no request and no JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .fault import BodyTooLarge, FaultKind, UpstreamFault

#: A call without a sink stops reading once it holds more than this. One read may bring 250 KiB (uvloop's
#: buffer), so what is held stays below 256 KiB.
HOLD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """Deadlines of one call in seconds; 0 means none.

    ``first_byte_s`` runs from writing the request to the first byte of the response's body (or its end, when
    it has none); ``between_chunks_s`` from one body byte to the next, and stands still while the call is
    paused; ``total_s`` from the start the caller gives, over all its attempts.
    """

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    between_chunks_s: float = 120.0
    total_s: float = 0.0


class Sink(Protocol):
    """Who wants a body. Called from the loop, in order: any number of ``on_data``, then exactly one of the
    others.

    After ``Call.abort`` nothing is called any more. None of the three may raise.
    """

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_fault(self, fault: UpstreamFault) -> None: ...


class Carrier(Protocol):
    """What brings a call its body: a connection of HTTP/1.1, or one stream of an HTTP/2 connection."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def drop(self) -> None: ...


class Call:
    """A response whose head is here.

    ``headers`` are as received, names in the server's spelling. With ``complete`` the whole body is in
    ``body`` and the connection has gone back to its pool. Otherwise ``body`` is what came with the head, and
    ``attach`` (or ``read_all``) must follow, or ``abort``.
    """

    # Defaults of the class: an answer that is whole at once sets few of them.
    status = 0
    content_length: int | None = None
    chunked = False
    complete = False
    body = b""
    # for the connection
    got_bytes = False
    got_body = False
    _sink: Sink | None = None
    _held: list[bytes] | None = None
    _held_bytes = 0
    _attached = False
    _paused = False
    _ended = False
    _fault: UpstreamFault | None = None

    def __init__(
        self,
        connection: Carrier,
        waiter: asyncio.Future[None],
        reused: bool,
        between_chunks_s: float,
        total_deadline: float,
    ) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.reused = reused
        # for the connection
        self.waiter: asyncio.Future[None] | None = waiter
        self.between_chunks_s = between_chunks_s
        self.total_deadline = total_deadline
        self.connection: Carrier | None = connection

    @property
    def paused(self) -> bool:
        """Whether the caller has paused this call."""
        return self._paused

    @property
    def ended(self) -> bool:
        """Whether the whole body has come."""
        return self._ended or self.complete

    @property
    def fault(self) -> UpstreamFault | None:
        """How the answer broke off after it had begun."""
        return self._fault

    def attach(self, sink: Sink) -> None:
        """Give the body to ``sink``: first, within this call, what has arrived, then each read as it comes.

        One sink a call: a second raises RuntimeError.
        """
        if self._attached:
            raise RuntimeError("this call has its sink")
        self._attached = True
        self._sink = sink
        body, held = self.body, self._held
        if body or held:
            self.body = b""
            self._held = None
            self._held_bytes = 0
            sink.on_data(body + b"".join(held) if held else body)
            if self._sink is not sink:
                return
        if self._fault is not None:
            self._sink = None
            sink.on_fault(self._fault)
        elif self._ended or self.complete:
            self._sink = None
            sink.on_end()
        elif self.connection is not None and not self._paused:
            self.connection.resume()

    def pause(self) -> None:
        """Stop reading from the backend; what it sends then stays with the kernel and with it. Idempotent."""
        if not self._paused and self.connection is not None:
            self._paused = True
            self.connection.pause()

    def resume(self) -> None:
        """Go on reading. Idempotent."""
        if self._paused:
            self._paused = False
            if self.connection is not None:
                self.connection.resume()

    async def read_all(
        self, limit_bytes: int, arrived: Callable[[int], None] | None = None
    ) -> bytes | bytearray:
        """The whole body. Raises UpstreamFault, or BodyTooLarge as soon as it is known to pass
        ``limit_bytes``.

        ``arrived`` hears how many bytes each read brought, unless the body was whole before; it may pause this
        call. The connection is dropped on either and when the caller is cancelled.
        """
        if self.content_length is not None and self.content_length > limit_bytes:
            self.abort()
            raise BodyTooLarge(limit_bytes)
        if self.complete and len(self.body) <= limit_bytes:
            body, self.body = self.body, b""
            return body
        collector = _Collector(self, limit_bytes, arrived)
        try:
            self.attach(collector)
            return await collector.result
        finally:
            self.abort()

    def abort(self) -> None:
        """Nobody wants the rest: drop the connection unless the response was complete. Idempotent, never
        raises.
        """
        self._attached = True
        self._sink = None
        self._held = None
        self._held_bytes = 0
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.drop()

    # -- for the connection ------------------------------------------------------------------------

    def overdue(self, now: float) -> FaultKind:
        """Which of its deadlines it is that has passed."""
        if self.total_deadline <= now:
            return FaultKind.TOTAL_TIMEOUT
        return FaultKind.BETWEEN_CHUNKS_TIMEOUT if self.got_body else FaultKind.FIRST_BYTE_TIMEOUT

    def push(self, data: bytes) -> bool:
        """A read's worth of body. True: the connection should stop reading until it is resumed."""
        sink = self._sink
        if sink is not None:
            sink.on_data(data)
            return False
        if self._held is None:
            self._held = []
        self._held.append(data)
        self._held_bytes += len(data)
        return self._held_bytes + len(self.body) > HOLD_BYTES

    def end(self) -> None:
        """The body is complete and the connection is no longer this call's."""
        self.connection = None
        self._ended = True
        sink = self._sink
        if sink is not None:
            self._sink = None
            sink.on_end()

    def fail(self, fault: UpstreamFault) -> None:
        """The call failed and the connection is no longer its own."""
        self.connection = None
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_exception(fault)
            return
        self._fault = fault
        sink = self._sink
        if sink is not None:
            self._sink = None
            sink.on_fault(fault)


class _Collector:
    """The sink of ``read_all``."""

    __slots__ = ("_arrived", "_body", "_call", "_limit_bytes", "_room", "result")

    def __init__(self, call: Call, limit_bytes: int, arrived: Callable[[int], None] | None) -> None:
        self._arrived = arrived
        self._call = call
        self._limit_bytes = limit_bytes
        self._room = limit_bytes
        self._body = bytearray()  # grows in place: pieces would be there twice at the end, and leave holes
        self.result: asyncio.Future[bytes | bytearray] = asyncio.get_running_loop().create_future()

    def on_data(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0:
            self._call.abort()
            self._settle(BodyTooLarge(self._limit_bytes))
        else:
            self._body += data
            if self._arrived is not None:
                self._arrived(len(data))

    def on_end(self) -> None:
        if not self.result.done():
            self.result.set_result(self._body)

    def on_fault(self, fault: UpstreamFault) -> None:
        self._settle(fault)

    def _settle(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
