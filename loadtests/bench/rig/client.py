"""The bench's own client: HTTP/1.1 over keep-alive, timed to the first byte of the body, every byte checked.

Strategy: httptools under asyncio's Protocol and one future a request. It is for what wrk cannot see: when the first
token came, whether all of a stream came, how many bytes have come so far. wrk does the saturating.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Reply:
    """One answer. Times in seconds from the write of the request."""

    status: int = 0
    request_id: bool = False
    first_byte_s: float = 0.0
    done_s: float = 0.0
    body_bytes: int = 0
    crc: int = 0


class Gone(Exception):
    """The server closed the connection before the reply was complete."""


class Tally:
    """Bytes of body received by all connections that share it."""

    def __init__(self) -> None:
        self.body_bytes = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._reply = Reply()
        self._started = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(Gone(f"after {self._reply.body_bytes} bytes of body: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id" and value:
            self._reply.request_id = True

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        if not reply.body_bytes:
            reply.first_byte_s = time.perf_counter() - self._started
        reply.body_bytes += len(data)
        reply.crc = zlib.crc32(data, reply.crc)
        self._tally.body_bytes += len(data)

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self._reply.done_s = time.perf_counter() - self._started
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(self._reply)

    async def ask(self, request: bytes) -> Reply:
        """Send one request and return its whole reply. Raise Gone when the connection ends before it."""
        if self._transport is None:
            raise Gone("the connection was closed while idle")
        self._reply = Reply()
        self._waiting = asyncio.get_running_loop().create_future()
        self._started = time.perf_counter()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()


async def connect(url: str, tally: Tally | None = None) -> Connection:
    """Open one connection to the host and port of ``url``."""
    loop = asyncio.get_running_loop()
    shared = tally or Tally()
    _, connection = await loop.create_connection(lambda: Connection(shared), *address(url))
    return connection


def address(url: str) -> tuple[str, int]:
    """Return the host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def request(url: str, body: bytes, bearer: str = "") -> bytes:
    """Return a POST of JSON as bytes, with an API key where there is one."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    if bearer:
        head += f"authorization: Bearer {bearer}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def percentile(values: list[float], p: float) -> float:
    """Return the value that ``p`` percent of ``values`` do not exceed; 0 when there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]
