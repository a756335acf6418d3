"""Carries a response body from a backend to a client, byte for byte, without a task or a copy of its own.

The upstream connection pushes what one socket read gave; it goes straight to the client's connection. What paces
this is the client's kernel: every 64 KiB the relay asks how much of what it sent has been acknowledged, and pauses
the upstream while more than 256 KiB is not (the server host itself buffers without bound). A client that acknowledges
nothing for ``write_timeout_s`` is dropped. Where the kernel cannot tell (a Unix socket, HTTP/2), a stream may send
4 MiB, then it is cut.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from .dialects import StreamEnd
from .errors import Fault, Kind
from .faults import fault_of
from .meter import StreamMeter
from .raw import ClientGone, StreamOut
from .upstream.fault import UpstreamFault

ASK_EVERY_BYTES = 64 << 10
PAUSE_ABOVE_BYTES = 256 << 10
UNKNOWN_LIMIT_BYTES = 4 << 20


class Upstream(Protocol):
    """The part of :class:`penstock.gateway.upstream.pool.Call` that a relay steers."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Relay:
    """One body on its way: the sink of a call. ``done`` resolves once, with None or the :class:`Fault` that ended it.

    ``end`` watches for the dialect's terminal event; None for bodies that are no event stream. ``said_bytes``: what
    the gateway itself has put on the wire of this body before. ``meter``: counts and times what passes.
    """

    __slots__ = (
        *("_asked_at", "_base", "_call", "_chunked", "_end", "_meter", "_out", "_overhead", "_progress_at"),
        *("_progress_bytes", "done", "last", "paused", "pauses", "sent"),
    )

    def __init__(
        self,
        call: Upstream,
        out: StreamOut,
        end: StreamEnd | None,
        loop: asyncio.AbstractEventLoop,
        said_bytes: int = 0,
        meter: StreamMeter | None = None,
    ) -> None:
        self._meter = meter
        self._call = call
        self._out = out
        self._end = end
        self._base: int | None = None
        self._overhead = said_bytes
        self._asked_at = ASK_EVERY_BYTES
        self._progress_at = 0.0
        self._progress_bytes = 0
        self.done: asyncio.Future[Fault | None] = loop.create_future()
        self.last = b"\n\n"
        self.paused = False
        self.pauses = 0
        self.sent = 0

    @property
    def events(self) -> bool:
        """Whether this is an event stream, in which a failure can be said."""
        return self._end is not None

    def said(self, wire_bytes: int) -> None:
        """The gateway itself has put as much on the wire of this body."""
        self._overhead += wire_bytes

    # ---- the sink of the upstream call

    def on_data(self, data: bytes) -> None:
        """Pass on what one read gave."""
        if self.done.done():
            return
        if self._base is None and self.sent + len(data) >= self._asked_at:
            self._find_base()
        try:
            self._out.send(data)
        except ClientGone:
            self._finish(Fault(Kind.CLIENT_CLOSED, "the client left"))
            self._call.abort()
            return
        self.last = data
        # a chunk on the wire is its length in hex, two line ends, and the data (RFC 9112 §7.1)
        self._overhead += len(f"{len(data):x}") + 4
        self.sent += len(data)
        if self._end is not None:
            self._end.feed(data)
        if self._meter is not None:
            self._meter.feed(data)
        if self.sent >= self._asked_at:
            self._pace()

    def on_end(self) -> None:
        """The backend ended the body cleanly; a stream without its terminal event has failed all the same."""
        if self._end is not None and not self._end.terminal():
            self._finish(
                Fault(Kind.UPSTREAM_INCOMPLETE, "the backend ended the stream before its last event")
            )
        else:
            self._finish(None)

    def on_fault(self, fault: UpstreamFault) -> None:
        """The backend broke off."""
        self.on_fail(fault_of(fault))

    def on_fail(self, fault: Fault) -> None:
        """The body cannot go on, for whatever reason."""
        self._finish(fault)

    def _finish(self, fault: Fault | None) -> None:
        self.paused = False
        if not self.done.done():
            self.done.set_result(fault)

    # ---- back-pressure

    def _find_base(self) -> None:
        """Before much is under way: how much of the connection was acknowledged when this body began."""
        acked = self._out.acked()
        if acked is not None:
            total, queued = acked
            self._base = total - max(0, self.sent + self._overhead - queued)

    def _unacknowledged(self, settled: bool) -> int | None:
        """What is under way; ``settled``: the server host has had time to hand all of it to the kernel.

        Only then does an empty queue say that everything arrived, and what was guessed wrong of the framing is
        forgotten. Before that the host may hold what the kernel has not seen: a burst would count as acknowledged.
        """
        acked = self._out.acked()
        if acked is None:
            return None
        total, queued = acked
        on_wire = self.sent + self._overhead
        if self._base is None or (settled and queued == 0):
            self._base = total - on_wire if queued == 0 else total
        return max(on_wire - (total - self._base), queued)

    def _pace(self) -> None:
        self._asked_at = self.sent + ASK_EVERY_BYTES
        waiting = self._unacknowledged(False)
        if waiting is None:
            if self.sent > UNKNOWN_LIMIT_BYTES:
                self._finish(
                    Fault(
                        Kind.STREAM_UNPACED,
                        "over HTTP/2 or a Unix socket a stream may send 4 MiB at most, because it cannot be "
                        "seen there how fast its client reads; use HTTP/1.1 over TCP for longer ones",
                    )
                )
                self._call.abort()
        elif waiting > PAUSE_ABOVE_BYTES and not self.paused:
            self.paused = True
            self.pauses += 1
            self._progress_at = 0.0
            self._call.pause()

    def tick(self, now: float, write_timeout_s: float) -> None:
        """Ask again for a paused stream: go on, wait, or give the client up."""
        if not self.paused or self.done.done():
            return
        waiting = self._unacknowledged(self._progress_at > 0.0)
        if waiting is None or waiting <= PAUSE_ABOVE_BYTES:
            self.paused = False
            self._call.resume()
        elif not self._progress_at or waiting < self._progress_bytes:
            self._progress_at = now
            self._progress_bytes = waiting
        elif now - self._progress_at > write_timeout_s:
            self._finish(
                Fault(
                    Kind.CLIENT_STALLED,
                    f"the client read nothing for write_timeout_s ({write_timeout_s:g} s)",
                )
            )
            self._call.abort()
