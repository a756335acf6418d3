"""The connections of one worker to one backend.

Last in, first out: the connection used most recently is the one least likely to have been closed by the
server, and the rest grow old and go. A call on an idle connection costs one future and no task; deadlines and
idle times are driven by ``tick``, which the worker calls for all its pools.

**Idle times.** A connection idles for ``idle_s`` at most: vLLM closes after 5 s without a word, and a request
written at that moment is lost. A server that says how long it keeps a connection (``Keep-Alive: timeout=N``)
is believed: its connections go one second before that if it is sooner, and up to ``min_idle`` of them may
stay that long if it is later (60 s at most). Nothing is opened ahead of need: against a server that closes
after 5 s that would be a reconnect every few seconds for nothing. ``max_idle`` bounds what is kept for longer
than a second: when many answers come in one turn of the loop their connections are all idle for an instant,
and closing some of them would mean to open them again at once. The number in use is bounded by admission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .call import Call, CallTimeouts
from .connection import Connection
from .connector import Connector
from .fault import FaultKind, UpstreamFault
from .origin import Origin
from .outbox import Outbox

_NEVER = float("inf")
_LONGEST_IDLE_S = 60.0
#: how much earlier than its server we let go of a connection
_MARGIN_S = 1.0
#: how long there may be more than ``max_idle``
_EXCESS_S = 1.0


class Pool:
    """Connections to ``origin``. ``idle`` and ``active`` (calls and connects in progress) are for gauges and
    tests. ``outbox``: its own where it is alone.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        connector: Connector,
        min_idle: int,
        max_idle: int,
        idle_s: float,
        outbox: Outbox | None = None,
    ) -> None:
        self.origin = origin
        self._loop = loop
        self._clock = clock
        self._connector = connector
        self._min_idle = min_idle
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: list[Connection] = []
        self._active: set[Connection] = set()
        self._outbox = Outbox(loop) if outbox is None else outbox
        #: told by connections whose request is ready; a frame less than to pass it on
        self.to_send: Callable[[Connection], None] = self._outbox.add
        self._connecting = 0
        self._closing = False
        self._drained: asyncio.Future[None] | None = None

    @property
    def idle(self) -> int:
        """Connections that wait for a call."""
        return len(self._idle)

    @property
    def active(self) -> int:
        """Calls in progress, those still connecting included."""
        return len(self._active) + self._connecting

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
        """Send a request and wait for its response to begin, or to be whole.

        ``head`` is the request's head with its final empty line, ``body`` exactly what its Content-Length
        says. A response announced with at most 64 KiB, without a body, or ended within the read that began it
        comes back ``complete``; any other comes back with its first body bytes. ``total_started`` is when
        ``total_s`` began, on the pool's clock (default: now); ``fresh`` forces a new connection; ``cuts`` is
        filled with the offsets at which the server's chunks end, :data:`penstock.gateway.upstream.h1.MAX_CUTS`
        at most. Raises UpstreamFault. Cancelling closes the connection and leaves nothing behind.
        """
        now = self._clock()
        total_s = timeouts.total_s
        total_deadline = (
            (now if total_started is None else total_started) + total_s if total_s > 0 else _NEVER
        )
        connection = None if fresh else self._take(now)
        if connection is None:
            connection = await self._open(timeouts.connect_s, now, total_deadline)
            if not connection.usable:
                raise UpstreamFault(FaultKind.CONNECT_FAILED, "closed as soon as it was open")
            now = self._clock()
        call, waiter = connection.start(head, body, timeouts, now, total_deadline, cuts)
        self._active.add(connection)
        self._outbox.calls += 1
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
        """Fail the calls whose deadline has passed, close what idled too long. A few times a second is
        enough.
        """
        for connection in [active for active in self._active if active.deadline <= now]:
            connection.expire(now)
        idle = self._idle
        over_min, over_max = len(idle) - self._min_idle, len(idle) - self._max_idle
        for place, connection in enumerate(list(idle)):  # the longest idle come first
            idle_s = now - connection.idle_since
            if (
                now >= connection.idle_until
                or (place < over_min and idle_s >= self._idle_s)
                or (place < over_max and idle_s >= _EXCESS_S)
            ):
                connection.close()

    async def close(self, grace_s: float = 0.0) -> None:
        """Close idle connections now and busy ones when their call ends, or after ``grace_s`` with a CLOSED
        fault.

        A call that begins afterwards still works, on a connection of its own: a request may have chosen this
        backend just before the configuration dropped it.
        """
        self._closing = True
        for connection in list(self._idle):
            connection.close()
        if self._active and grace_s > 0:
            self._drained = self._loop.create_future()
            try:
                async with asyncio.timeout(grace_s):
                    await self._drained
            except TimeoutError:
                pass
            finally:
                self._drained = None
        for connection in list(self._active):
            connection.fail(FaultKind.CLOSED, "the pool was closed")

    # -- told by connections -----------------------------------------------------------------------

    def finished(self, connection: Connection, reusable: bool) -> None:
        if connection in self._active:
            self._active.remove(connection)
            self._outbox.calls -= 1
        if connection.served == 1 and self.origin.scheme == "https":
            self._connector.remember_session(connection.transport)
        if reusable:
            if self._closing:
                connection.close()
            else:
                now = self._clock()
                connection.idle_since = now
                announced = connection.keep_alive_s
                connection.idle_until = now + (self._idle_s if announced is None else self._keep_s(announced))
                self._idle.append(connection)
        if self._drained is not None:
            self._check_drained()

    def gone(self, connection: Connection) -> None:
        if connection in self._active:
            self._active.remove(connection)
            self._outbox.calls -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if self._drained is not None:
            self._check_drained()

    # -- inside ------------------------------------------------------------------------------------

    def _take(self, now: float) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.usable:
                if now < connection.idle_until:
                    return connection
                connection.close()
        return None

    def _keep_s(self, announced_s: float) -> float:
        """How long a connection may idle at most whose server keeps it so long."""
        return min(max(announced_s - _MARGIN_S, 0.0), max(_LONGEST_IDLE_S, self._idle_s))

    def _make_connection(self) -> Connection:
        return Connection(self, self._loop, self._clock)

    async def _open(self, connect_s: float, now: float, total_deadline: float) -> Connection:
        timeout_s = connect_s if connect_s > 0 else _NEVER
        left_s = total_deadline - now
        self._connecting += 1
        try:
            return await self._connector.connect(self.origin, self._make_connection, min(timeout_s, left_s))
        except UpstreamFault as fault:
            if fault.kind is FaultKind.CONNECT_TIMEOUT and left_s <= timeout_s:
                raise UpstreamFault(FaultKind.TOTAL_TIMEOUT, fault.detail) from None
            raise
        finally:
            self._connecting -= 1

    def _check_drained(self) -> None:
        if self._drained is not None and not self._active and not self._drained.done():
            self._drained.set_result(None)
