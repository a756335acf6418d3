"""Asks an endpoint without a connection and keeps what it says: how canned answers are made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec

from .api import routes
from .api.context import Context
from .connection import Connection
from .exchange import JSON, Exchange
from .wire import Header, Request


class _Recorder(Exchange):
    """An exchange whose client is a pair of lists."""

    def __init__(self, request: Request) -> None:
        # Nothing that needs a connection is called: reply and stream are the only ways endpoints speak.
        super().__init__(cast(Connection, None), request, [])
        self.body = b""
        self.events: list[bytes] = []

    async def reply(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: tuple[Header, ...] = ()
    ) -> None:
        self.body = body

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        self.events = [event async for event in events]


async def record(context: Context, path: str, body: dict[str, Any]) -> tuple[bytes, list[bytes]]:
    """The body of the plain answer, or the events of the streamed one."""
    request = Request("POST", path, path, "", [], msgspec.json.encode(body), True, 1)
    recorder = _Recorder(request)
    await routes.find("POST", path).call(context, recorder)
    return recorder.body, recorder.events
