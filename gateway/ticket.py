"""A client's place in a flight: what it can ask of it, and what it is given.

Strategy: a member knows how far it has come in its flight's log and pushes the rest to its sink, as far as that
wants to have it. It refuses to know who else is there; what the flight must hear of (someone pauses, goes on,
leaves) it is told.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from .errors import Fault

if TYPE_CHECKING:
    from .flight import Flight


class LeaderLost(Exception):
    """The flight ended without an answer that is anybody's: its leader died, or knows nothing of it. Ask anew."""


class Head:
    """How an answer begins. ``body`` is the whole of it, or None where pieces follow.

    ``headers`` belong to all members: whoever adds some copies the list first.
    """

    __slots__ = ("body", "headers", "media", "status")

    def __init__(
        self, status: int, headers: list[tuple[str, str]], media: str, body: bytes | bytearray | None
    ) -> None:
        self.status = status
        self.headers = headers
        self.media = media
        self.body = body


class Sink(Protocol):
    """Who wants a body: any number of ``on_data``, then exactly one of the others. None of them may raise."""

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_fail(self, fault: Fault) -> None: ...


class Ticket(Protocol):
    """One client's place in a flight. Whoever has one gives it back by ``abort``, on every path."""

    async def head(self) -> Head:
        """Wait for how the answer begins. Raises the :class:`Fault` it ended with, or :class:`LeaderLost`."""

    def attach(self, sink: Sink) -> None:
        """Give the body to ``sink``: first, within this call, what came so far, then the rest as it comes."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None:
        """Leave, or let go of what is no longer needed. Idempotent."""


class Member:
    """A place in a flight of this process; a :class:`Ticket`."""

    __slots__ = ("_flight", "_pushing", "_ready", "_sink", "at", "attached", "gone", "paused")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._sink: Sink | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pushing = False
        #: the next piece, counted from the body's first
        self.at = 0
        self.attached = False
        self.gone = False
        self.paused = False

    def ready(self) -> asyncio.Future[None]:
        """Resolves when :meth:`outcome` has something to say."""
        if self._ready is None:
            self._ready = self._flight.loop.create_future()
            if self._flight.begun:
                self._ready.set_result(None)
        return self._ready

    def outcome(self) -> Head:
        """The head, once ``ready``. Raises as :meth:`head` does."""
        flight = self._flight
        if flight.head is not None:
            return flight.head
        if flight.fault is not None:
            raise _copy(flight.fault)
        raise LeaderLost

    async def head(self) -> Head:
        """As in :class:`Ticket`; whoever is cancelled here has left."""
        if not self._flight.begun:
            try:
                await self.ready()
            except asyncio.CancelledError:
                self.abort()
                raise
        return self.outcome()

    def attach(self, sink: Sink) -> None:
        """As in :class:`Ticket`. Raises RuntimeError for a second sink, before the head, and for a whole answer."""
        head = self._flight.head
        if self.attached or head is None or head.body is not None:
            raise RuntimeError("nothing to attach to")
        if self.gone:
            return
        self.attached = True
        self._sink = sink
        self._flight.attached(self)

    def pause(self) -> None:
        """Give no more until resumed. Idempotent."""
        if not self.paused and not self.gone:
            self.paused = True
            self._flight.paused(self)

    def resume(self) -> None:
        """Go on. Idempotent."""
        if self.paused and not self.gone:
            self.paused = False
            self._flight.resumed(self)

    def abort(self) -> None:
        """Leave. Idempotent."""
        if not self.gone:
            self.gone = True
            self._sink = None
            self._flight.left(self)

    # ---- for the flight

    def wake(self) -> None:
        """The head is there, or will never be."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def push(self) -> None:
        """Give the sink what it has not had; it may pause, resume or leave meanwhile."""
        if self._pushing:
            return
        self._pushing = True
        flight = self._flight
        while self._sink is not None and not self.paused:
            data = flight.piece(self.at)
            if data is not None:
                self.at += 1
                self._sink.on_data(data)
            elif flight.ended:
                sink, self._sink = self._sink, None
                self.gone = True
                if flight.fault is None:
                    sink.on_end()
                else:
                    sink.on_fail(_copy(flight.fault))
                flight.left(self)
            else:
                break
        self._pushing = False


def _copy(fault: Fault) -> Fault:
    """One for each who raises it: a traceback belongs to one task."""
    return Fault(
        fault.kind,
        fault.message,
        param=fault.param,
        retry_after_s=fault.retry_after_s,
        headers=fault.headers,
    )
