"""One call on an HTTP/2 connection: to the call it is the connection.

What the exchange has received is handed to the call as it comes; while the call is paused nothing is acknowledged, so
that the backend stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .call import HOLD_BYTES, Call
from .connection import WHOLE_BYTES
from .fault import FaultKind, UpstreamFault
from .h2 import Exchange

if TYPE_CHECKING:
    from .h2_connection import H2Connection

NEVER = float("inf")


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
        self.deadline = NEVER
        self._exchange.owner = None
        self.connection.owner.finished(self)

    def _expect_more(self, call: Call) -> None:
        between_s = call.between_chunks_s
        deadline = self.connection.clock() + between_s if between_s > 0 else NEVER
        self.deadline = deadline if deadline < call.total_deadline else call.total_deadline

    def _fill_head(self, call: Call) -> None:
        exchange = self._exchange
        call.status = exchange.status
        call.headers = exchange.headers
        call.content_length = exchange.content_length
        call.chunked = exchange.content_length is None
