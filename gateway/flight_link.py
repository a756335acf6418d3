"""The two ends of the Unix socket by which a worker follows a flight of another (format: ``flight_frames``).

The leader's end is one more member of the flight; the follower's end feeds a flight of its own worker, which all who
ask there join. Back-pressure goes through the socket: who does not read fills it, and that pauses his member alone
as long as the flight keeps its pieces. Closing is leaving, and a leader's death closes. Everything that is read is
bounded. Processes that hang with their sockets open are the registry's business (:mod:`penstock.gateway.flights`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from ..cache.digest import Key
from .errors import Fault, Kind
from .flight import Flight, Terms, UpstreamSink
from .flight_frames import (
    WISH_BYTES,
    BadFrame,
    FrameKind,
    Frames,
    data_frames,
    fault_frame,
    frame,
    head_frame,
    read_fault,
    read_head,
    read_wish,
)
from .gathered import Gathered, sliced
from .ticket import Head, LeaderLost, Member

#: A connection that holds more unsent pauses its member; resumed at a quarter of it.
_HIGH_BYTES = 64 << 10


class Served(asyncio.Protocol):
    """The leader's end of one connection: finds the flight that is wished for and sends it.

    ``find`` gives a flight that this worker leads and that may be joined. ``over`` hears when the connection is gone.
    """

    def __init__(
        self, find: Callable[[Key], Flight | None], over: Callable[[Served], None], now_s: float
    ) -> None:
        self._find = find
        self._over = over
        self._transport: asyncio.Transport | None = None
        self._wish = b""
        self._member: Member | None = None
        self._source: Member | Gathered | None = None
        self.began_s = now_s
        #: the follower, once it has said who it is: slot and generation
        self.peer: tuple[int, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if len(self._wish) + len(data) > WISH_BYTES or self._transport is None:
            self.drop()  # a follower has nothing more to say
            return
        self._wish += data
        if len(self._wish) == WISH_BYTES:
            key, slot, generation = read_wish(self._wish)
            self.peer = slot, generation
            flight = self._find(key)
            if flight is None:
                self._last(frame(FrameKind.GONE))
            else:
                self._member = flight.join()
                if flight.begun:
                    self._begin()
                else:
                    self._member.ready().add_done_callback(lambda _: self._begin())

    def _begin(self) -> None:
        member, transport = self._member, self._transport
        if transport is None or member is None:
            return
        try:
            head = member.outcome()
        except LeaderLost:
            self._last(frame(FrameKind.GONE))
            return
        except Fault as fault:
            self.on_fail(fault)
            return
        try:
            transport.write(head_frame(head))
        except ValueError:  # longer than any backend may send: the follower asks anew
            self._last(frame(FrameKind.GONE))
            return
        if head.body is None:
            self._source = member
            member.attach(self)
        else:
            self._source = gathered = Gathered(sliced(head.body))
            gathered.attach(self)

    # ---- the sink of the flight

    def on_data(self, data: bytes) -> None:
        if self._transport is not None:
            for piece in data_frames(data):
                self._transport.write(piece)

    def on_end(self) -> None:
        self._last(frame(FrameKind.END))

    def on_fail(self, fault: Fault) -> None:
        self._last(fault_frame(fault))

    def _last(self, data: bytes) -> None:
        """The last frame, behind which the connection closes once it is sent."""
        if self._transport is not None:
            self._transport.write(data)
            self._transport.close()

    # ---- from the transport

    def pause_writing(self) -> None:
        if self._source is not None:
            self._source.pause()

    def resume_writing(self) -> None:
        if self._source is not None:
            self._source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        source, self._source = self._source, None
        if source is not None:
            source.abort()
        if self._member is not None:
            self._member.abort()
            self._member = None
        self._over(self)

    @property
    def unsent_bytes(self) -> int:
        """What waits here to be taken by the socket."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def drop(self) -> None:
        """End the connection now; what is not sent is lost."""
        if self._transport is not None:
            self._transport.abort()


class Carried(asyncio.Protocol):
    """The follower's end: feeds ``flight``, which belongs to this worker, with what another worker's flight gives.

    ``leader`` is that worker's slot and generation. At the end exactly one of two is called: ``lost`` when the
    connection closed before an answer could be given to anybody, and the flight is still to be ended; ``over`` else.
    Whole answers are gathered here up to ``limit_bytes``.
    """

    def __init__(
        self,
        flight: Flight,
        leader: tuple[int, int],
        wish: bytes,
        terms: Terms,
        limit_bytes: int,
        lost: Callable[[Carried], None],
        over: Callable[[Carried], None],
    ) -> None:
        self.flight = flight
        self.leader = leader
        self._wish = wish
        self._terms = terms
        self._limit_bytes = limit_bytes
        self._lost = lost
        self._over = over
        self._transport: asyncio.Transport | None = None
        self._frames = Frames()
        self._sink: UpstreamSink | None = None
        self._head: Head | None = None
        self._body: list[bytes] | None = None
        self._body_bytes = 0
        self._held_bytes = 0
        self._paused = False
        self._reading = False
        self._ended = False

    # ---- what feeds the flight

    def attach(self, sink: UpstreamSink) -> None:
        self._sink = sink

    def pause(self) -> None:
        if not self._paused and not self._ended:
            self._paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._read()
            if not self._paused and self._transport is not None:
                self._transport.resume_reading()

    def abort(self) -> None:
        """Nobody here wants the answer any more. Idempotent."""
        self._end(lambda: None)

    # ---- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._ended:
            self._transport.abort()
        else:
            self._transport.write(self._wish)

    def data_received(self, data: bytes) -> None:
        if not self._ended:
            self._frames.feed(data)
            self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._paused and not self._ended:
            # what came before the leader was lost is the members' first; the frames behind it say how it ended
            self._paused = False
            self._read(to_the_end=True)
        self.give_up()

    def give_up(self) -> None:
        """The leader is gone, or hangs. Idempotent."""
        if self._ended:
            return
        if self._sink is not None:
            self._end(self.flight.lose)
        else:
            self._stop()
            self._lost(self)

    def _read(self, to_the_end: bool = False) -> None:
        if self._reading:
            return
        self._reading = True
        try:
            while not self._ended and (to_the_end or not self._paused):
                found = self._frames.next()
                if found is None:
                    break
                self._take(*found)
        except BadFrame:
            self.give_up()
        finally:
            self._reading = False

    def _take(self, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.DATA and self._sink is not None:
            self._sink.on_data(payload)
        elif kind is FrameKind.DATA and self._body is not None:
            self._gather(payload)
        elif kind is FrameKind.END and self._sink is not None:
            self._end(self.flight.finish)
        elif kind is FrameKind.END and self._body is not None and self._head is not None:
            head, head.body = self._head, b"".join(self._body)
            self._end(lambda: self.flight.respond(head))
        elif kind is FrameKind.FAULT:
            fault = read_fault(payload)
            self._end(lambda: self.flight.fail(fault))
        elif kind is FrameKind.HEAD and self._head is None:
            self._head, whole = read_head(payload)
            if whole:
                self._body = []
            else:
                self.flight.begin(self._head, self)
        elif kind is FrameKind.GONE and self._head is None:
            self._end(self.flight.lose)
        else:
            raise BadFrame(f"a frame of kind {kind.name} out of turn")

    def _gather(self, payload: bytes) -> None:
        assert self._body is not None
        self._body.append(payload)
        size = self._body_bytes = self._body_bytes + len(payload)
        if size > self._held_bytes:
            step = max(size - self._held_bytes, self._held_bytes)
            if size > self._limit_bytes or not self._terms.try_hold(step):
                full = Fault(
                    Kind.BUFFERS_FULL,
                    "this node holds as many bytes as limits.max_buffered allows",
                    retry_after_s=1.0,
                )
                self._end(lambda: self.flight.fail(full))
                return
            self._held_bytes += step

    def _end(self, tell: Callable[[], None]) -> None:
        """Nothing more comes in; the flight is told by ``tell`` how it ended. Idempotent."""
        if not self._ended:
            self._stop()
            tell()
            self._over(self)

    def _stop(self) -> None:
        self._ended = True
        if self._held_bytes:
            self._terms.release(self._held_bytes)  # the flight counts what it keeps
            self._held_bytes = 0
        if self._transport is not None:
            self._transport.abort()
