"""The HTTP/2 connections of one worker to one backend: many calls share one connection.

Calls are spread: up to ``min_connections`` are opened before one carries a second stream, then the least busy one
is taken, and up to ``max_connections`` are opened when all are full. What finds no place waits in the order it
came, for ``connect_s`` at most. Connections are opened by tasks of the pool, for whoever waits; the first word of
the server (its SETTINGS) belongs to the opening, so a request is never sent to something that speaks another
protocol, and never above the number of streams that the server takes.

Idle connections are closed after ``idle_s``, those above ``min_connections`` after a second. A connection that the
server is leaving (GOAWAY) takes nothing new and no longer counts; its streams end in peace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .call import Call, CallTimeouts
from .connector import Connector
from .fault import FaultKind, UpstreamFault
from .h2_connection import H2Connection
from .h2_stream import Stream
from .origin import Origin

_NEVER = float("inf")
#: with fewer calls in progress a request is written at once, as over HTTP/1.1
_FEW = 4
#: how long there may be more idle connections than ``min_connections``
_EXCESS_S = 1.0
#: how long calls make do with the connections there are after opening another has failed
_MAKE_DO_S = 1.0

_Begun = tuple[Call, asyncio.Future[None]]


class _Waiting:
    """A call that has no stream yet."""

    __slots__ = ("args", "begun", "deadline", "total_deadline")

    def __init__(
        self,
        args: tuple[bytes, bytes | None, CallTimeouts, list[int] | None],
        begun: asyncio.Future[_Begun],
        deadline: float,
        total_deadline: float,
    ) -> None:
        self.args = args
        self.begun = begun
        self.deadline = deadline
        self.total_deadline = total_deadline


class H2Pool:
    """Connections to ``origin``, with the interface of :class:`penstock.gateway.upstream.pool.Pool`.

    ``idle`` counts connections without a stream, ``active`` calls, those that wait for a stream included.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        connector: Connector,
        min_connections: int,
        max_connections: int,
        max_streams: int,
        idle_s: float,
    ) -> None:
        self.origin = origin
        self._loop = loop
        self._clock = clock
        self._connector = connector
        self._min = min(min_connections, max_connections)
        self._max = max_connections
        self._max_streams = max_streams
        self._idle_s = idle_s
        self._connections: list[H2Connection] = []
        self._leaving: set[H2Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._active: set[Stream] = set()
        self._waiting: dict[_Waiting, None] = {}
        # what one connection is expected to carry: what the last one could
        self._expected = max_streams
        self._make_do_until = 0.0
        self._closing = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def idle(self) -> int:
        """Connections that carry nothing."""
        return sum(not connection.streams for connection in self._connections)

    @property
    def active(self) -> int:
        """Calls in progress, those that wait for a stream included."""
        return len(self._active) + len(self._waiting)

    @property
    def connections(self) -> int:
        """Open connections, those that the server is leaving included."""
        return len(self._connections) + len(self._leaving)

    async def call(
        self,
        head: bytes,
        body: bytes | None,
        timeouts: CallTimeouts,
        *,
        total_started: float | None = None,
        fresh: bool = False,
        cuts: list[int] | None = None,
    ) -> Call:
        """Send a request and wait for its response to begin, or to be whole; see :meth:`Pool.call`.

        ``head`` is written as for HTTP/1.1. ``fresh``: connections that idle are not trusted any more. ``cuts`` is
        filled with the ends of DATA frames, unless the response says its length. Cancelling resets the stream.
        """
        now = self._clock()
        total_s = timeouts.total_s
        total_deadline = (
            (now if total_started is None else total_started) + total_s if total_s > 0 else _NEVER
        )
        if fresh:
            for connection in [idle for idle in self._connections if not idle.streams and idle.served]:
                connection.close()
        chosen = None if self._waiting else self._choose(now)
        if chosen is not None:
            call, waiter = self._start(chosen, (head, body, timeouts, cuts), now, total_deadline)
        else:
            call, waiter = await self._wait((head, body, timeouts, cuts), now, total_deadline)
        try:
            await waiter
        except BaseException:
            call.abort()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # retrieved: a cancelled caller is not to be told of the fault in the log
            # the fault's traceback holds this frame: without them it is no cycle for the collector to find
            del waiter, call
            raise
        return call

    def tick(self, now: float) -> None:
        """Fail the calls whose deadline has passed, close what idled too long, ask the silent for a sign of life."""
        for stream in [active for active in self._active if active.deadline <= now]:
            stream.expire(now)
        for waiting in [late for late in self._waiting if late.deadline <= now]:
            total = waiting.total_deadline <= now
            kind = FaultKind.TOTAL_TIMEOUT if total else FaultKind.CONNECT_TIMEOUT
            self._refuse(waiting, UpstreamFault(kind, "no connection had room for another stream in time"))
        if self._waiting:
            self._serve()
        for connection in [*self._connections, *self._leaving]:
            connection.tick(now)
        idle = sorted((c for c in self._connections if not c.streams), key=_idle_since)
        over = len(self._connections) - self._min
        for place, connection in enumerate(idle):  # the longest idle come first
            idle_s = now - connection.idle_since
            if idle_s >= self._idle_s or (place < over and idle_s >= _EXCESS_S):
                connection.close()

    async def close(self, grace_s: float = 0.0) -> None:
        """Close idle connections now and the others when their last call ends, or after ``grace_s`` with a CLOSED
        fault for what is left.

        A call that begins afterwards still works.
        """
        self._closing = True
        for connection in list(self._connections):
            if not connection.streams:
                connection.close()
        if self.active and grace_s > 0:
            self._drained = self._loop.create_future()
            try:
                async with asyncio.timeout(grace_s):
                    await self._drained
            except TimeoutError:
                pass
            finally:
                self._drained = None
        for waiting in list(self._waiting):
            self._refuse(waiting, UpstreamFault(FaultKind.CLOSED, "the pool was closed"))
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.wait(opening)
        for stream in list(self._active):
            stream.fail(FaultKind.CLOSED, "the pool was closed")
        for connection in [*self._connections, *self._leaving]:
            connection.close()

    # -- told by connections -----------------------------------------------------------------------

    def is_calm(self) -> bool:
        return len(self._active) < _FEW

    def finished(self, stream: Stream) -> None:
        self._active.discard(stream)
        connection = stream.connection
        if connection.served == 1 and self.origin.scheme == "https":
            self._connector.remember_session(connection.transport)
        if self._closing and not connection.streams and connection in self._connections:
            connection.close()
        if self._waiting:
            self._serve()
        self._check_drained()

    def changed(self, connection: H2Connection) -> None:
        if connection not in self._connections:
            return  # not open yet, or leaving
        if not connection.usable:
            self._connections.remove(connection)
            if connection.streams:
                self._leaving.add(connection)
        if self._waiting:
            self._serve()

    def gone(self, connection: H2Connection) -> None:
        self._leaving.discard(connection)
        if connection not in self._connections:
            return  # one that failed to open is told by its task, which decides for those who wait
        self._connections.remove(connection)
        if self._waiting:
            self._serve()

    # -- a stream for each call --------------------------------------------------------------------

    def _room(self, connection: H2Connection) -> int:
        return min(self._max_streams, connection.session.allowed) - connection.streams

    def _choose(self, now: float) -> H2Connection | None:
        """The connection for the next call; None when it is to wait for one."""
        best: H2Connection | None = None
        fewest = 0
        for connection in self._connections:
            streams = connection.streams
            if best is not None and (
                streams > fewest or (streams == fewest and connection.idle_since <= best.idle_since)
            ):
                continue
            if not connection.usable or self._room(connection) <= 0:
                continue
            if not streams and now - connection.idle_since >= self._idle_s:
                continue  # the tick is about to close it, and perhaps the server is
            best, fewest = connection, streams
        if best is not None and fewest and now >= self._make_do_until and self._total < self._min:
            return None
        return best

    @property
    def _total(self) -> int:
        return len(self._connections) + len(self._opening)

    def _start(
        self,
        connection: H2Connection,
        args: tuple[bytes, bytes | None, CallTimeouts, list[int] | None],
        now: float,
        total_deadline: float,
    ) -> _Begun:
        head, body, timeouts, cuts = args
        call, stream, waiter = connection.start(head, body, timeouts, now, total_deadline, cuts)
        self._active.add(stream)
        return call, waiter

    async def _wait(
        self,
        args: tuple[bytes, bytes | None, CallTimeouts, list[int] | None],
        now: float,
        total_deadline: float,
    ) -> _Begun:
        connect_s = args[2].connect_s
        deadline = min(now + connect_s if connect_s > 0 else _NEVER, total_deadline)
        begun: asyncio.Future[_Begun] = self._loop.create_future()
        waiting = _Waiting(args, begun, deadline, total_deadline)
        self._waiting[waiting] = None
        self._serve()
        try:
            return await begun
        except BaseException:
            self._waiting.pop(waiting, None)
            if begun.done() and not begun.cancelled() and begun.exception() is None:
                begun.result()[0].abort()
            if not self._waiting:
                for task in self._opening:
                    task.cancel()
            del begun, waiting
            raise

    def _serve(self) -> None:
        """Give streams to those who wait, in their order, and open connections for the rest."""
        while self._waiting:
            now = self._clock()
            connection = self._choose(now)
            if connection is None:
                break
            waiting = next(iter(self._waiting))
            del self._waiting[waiting]
            if waiting.begun.done():
                continue
            try:
                waiting.begun.set_result(self._start(connection, waiting.args, now, waiting.total_deadline))
            except UpstreamFault as fault:
                waiting.begun.set_exception(fault)
        else:
            return
        if now < self._make_do_until and self._total:
            return  # opening has failed just now: what there is must do
        connect_s = next(iter(self._waiting)).args[2].connect_s
        while len(self._opening) < len(self._waiting) and self._total < self._max:
            if self._total >= self._min and len(self._opening) * self._expected >= len(self._waiting):
                break
            task = self._loop.create_task(self._open(connect_s))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _refuse(self, waiting: _Waiting, fault: UpstreamFault) -> None:
        self._waiting.pop(waiting, None)
        if not waiting.begun.done():
            waiting.begun.set_exception(fault)
        self._check_drained()

    # -- connections -------------------------------------------------------------------------------

    def _make_connection(self) -> H2Connection:
        return H2Connection(self, self._loop, self._clock, self.origin.scheme, self._max_streams)

    async def _open(self, connect_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection: H2Connection | None = None
        try:
            try:
                async with asyncio.timeout(connect_s if connect_s > 0 else None):
                    connection = await self._connector.connect(self.origin, self._make_connection, _NEVER)
                    await connection.ready
            except TimeoutError:
                raise UpstreamFault(
                    FaultKind.CONNECT_TIMEOUT, f"no HTTP/2 connection after {connect_s:g} s"
                ) from None
            if not connection.usable:
                raise UpstreamFault(FaultKind.CONNECT_FAILED, "closed as soon as it was open")
        except UpstreamFault as fault:
            self._opening.discard(task)
            self._not_opened(fault)
            if connection is not None:
                connection.break_off(fault.kind, fault.detail)
        except asyncio.CancelledError:
            if connection is not None:
                connection.break_off(FaultKind.CLOSED, "not wanted any more")
            raise
        else:
            self._opening.discard(task)
            self._connections.append(connection)
            room = self._room(connection)
            self._expected = max(1, room)
            if room <= 0:  # a server that allows no streams: another connection would have none either
                self._make_do_until = self._clock() + _MAKE_DO_S
            self._serve()

    def _not_opened(self, fault: UpstreamFault) -> None:
        now = self._clock()
        self._make_do_until = now + _MAKE_DO_S
        if self._opening or any(connection.usable for connection in self._connections):
            self._serve()
            return
        for waiting in list(self._waiting):
            kind = fault.kind
            if kind is FaultKind.CONNECT_TIMEOUT and waiting.total_deadline <= now:
                kind = FaultKind.TOTAL_TIMEOUT
            self._refuse(waiting, UpstreamFault(kind, fault.detail))

    def _check_drained(self) -> None:
        if self._drained is not None and not self.active and not self._drained.done():
            self._drained.set_result(None)


def _idle_since(connection: H2Connection) -> float:
    return connection.idle_since
