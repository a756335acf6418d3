"""One request and its answer. Endpoints speak through `reply` and `stream`; a fault may bend what they say.

Refuses to know what is said (api/) and what can go wrong (sabotage).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from . import wire
from .connection import Connection
from .wire import Header, Request

JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"


class Saboteur(Protocol):
    """Takes over one answer. Either returns None when it ended the exchange itself."""

    async def on_reply(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes
    ) -> bytes | None: ...
    def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]: ...


class Exchange:
    """`outcome` is what stats will count: the status sent, or "aborted" when the client left."""

    def __init__(self, connection: Connection, request: Request, extra: list[Header]) -> None:
        self.connection = connection
        self.request = request
        self.extra = extra
        self.saboteur: Saboteur | None = None
        self.outcome = "none"
        self.mark: str | None = None
        """What a fault made of the answer; counted instead of the outcome."""
        self.status = 0
        self.complete = False
        self.keep_alive = request.keep_alive

    async def reply(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: tuple[Header, ...] = ()
    ) -> None:
        """Sends a whole response with its length."""
        if self.saboteur is not None:
            bent = await self.saboteur.on_reply(self, status, body, content_type)
            if bent is None:
                return
            body = bent
        self.write(self.head(status, content_type, len(body), extra) + body)
        await self.connection.drain()
        self.end()

    async def json(self, status: int, value: Any, extra: tuple[Header, ...] = ()) -> None:
        """Sends `value` as JSON."""
        await self.reply(status, msgspec.json.encode(value), JSON, extra)

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Sends SSE events as they come, a chunk each, flushed one by one, paced by the client's reading."""
        if self.saboteur is not None:
            events = self.saboteur.on_stream(self, events)
        async for event in events:
            if not self.status:
                self.begin(200, SSE, None)
            self.write(wire.chunk(event))
            await self.connection.drain()
            # Gives the transport its turn, so that every event leaves in a segment of its own.
            await asyncio.sleep(0)
            if self.connection.closed:
                return
        if self.complete or self.connection.closed:
            return
        if not self.status:
            self.begin(200, SSE, None)
        self.write(wire.LAST_CHUNK)
        self.end()

    # -- raw moves, for saboteurs as well -----------------------------------------------------------------------

    def begin(
        self, status: int, content_type: bytes | None, length: int | None, extra: tuple[Header, ...] = ()
    ) -> None:
        """Writes the head; `length` None means chunked."""
        self.write(self.head(status, content_type, length, extra))

    def head(
        self, status: int, content_type: bytes | None, length: int | None, extra: tuple[Header, ...] = ()
    ) -> bytes:
        """The head `begin` would write; the answer counts as begun."""
        self.status = status
        self.outcome = str(status)
        return wire.head(
            status,
            content_type=content_type,
            length=length,
            close=not self.keep_alive,
            extra=[*self.extra, *extra],
        )

    def write(self, data: bytes) -> None:
        """Writes raw bytes, if there still is a client."""
        if not self.connection.closed:
            self.connection.transport.write(data)

    def end(self) -> None:
        """The answer is over (as intended, whatever that was)."""
        self.complete = True
