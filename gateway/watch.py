"""Looks after requests that wait: has the client left, is its body overdue, does its stream want to go on?

One tick for all of them, every 20 ms, so that a fast request pays for two dictionary operations and nothing else:
only a request older than one tick gets a task that waits for its client to leave.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from .errors import Fault, Kind
from .relay import Relay

#: A request this old is watched for its client's leaving (s).
WATCH_AFTER_S = 0.02


class Watched(Protocol):
    """The part of an exchange that the watch needs."""

    began_s: float
    body_by: float
    relay: Relay | None
    watching: asyncio.Task[None] | None

    @property
    def client(self) -> str: ...

    def abort(self, fault: Fault) -> None: ...

    async def gone(self) -> None: ...


class Watch:
    """All requests of one worker that are being answered."""

    __slots__ = ("_loop", "_old", "_young")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._young: dict[Watched, None] = {}
        self._old: dict[Watched, None] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, exchange: Watched) -> None:
        """A request has come."""
        self._young[exchange] = None

    def remove(self, exchange: Watched) -> None:
        """It is answered, or ended."""
        if exchange in self._young:
            del self._young[exchange]
        else:
            self._old.pop(exchange, None)
        watching = exchange.watching
        if watching is not None:
            exchange.watching = None
            watching.cancel()

    def tick(self, now: float, write_timeout_s: float) -> None:
        """Move what has grown old under watch, and look at everything there."""
        grown = []
        for exchange in self._young:  # in order of arrival
            if now - exchange.began_s < WATCH_AFTER_S:
                break
            grown.append(exchange)
        for exchange in grown:
            del self._young[exchange]
            self._old[exchange] = None
            exchange.watching = self._loop.create_task(exchange.gone())
        for exchange in list(self._old):
            if exchange.body_by and now > exchange.body_by:
                exchange.abort(Fault(Kind.BODY_TIMEOUT, "the body did not come in time"))
            relay = exchange.relay
            if relay is not None and relay.paused:
                relay.tick(now, write_timeout_s)

    def clients(self) -> list[str]:
        """The addresses (``ip:port``) that requests in flight came from."""
        return [exchange.client for exchange in (*self._young, *self._old)]

    def abort_all(self, fault: Fault) -> None:
        """End every request: streams get their error frame, waiters their status."""
        for exchange in [*self._young, *self._old]:
            exchange.abort(fault)
