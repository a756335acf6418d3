"""One client connection: bytes in, requests out, one exchange at a time, in order.

Bounds everything that comes from outside: head size, header count, body size, pipelined requests. Idle keep-alive
connections close after `keep_alive_s`, as vLLM's uvicorn does. Refuses to know endpoints and faults; it only offers
the raw moves a fault needs: `fin`, `reset`, `flushed`.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections import deque
from typing import Any, Protocol, cast

import httptools

from .settings import Settings
from .stats import Stats
from .wire import Header, Request

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
_SIOCOUTQ = 0x5411
_BAD = b"Invalid HTTP request received."


class Serve(Protocol):
    """What a connection needs from above: something that answers a request and finishes by itself."""

    def __call__(self, connection: Connection, request: Request) -> asyncio.Task[None] | None: ...


class Fast(Protocol):
    """Answers raw bytes without parsing them, or returns False to have them parsed."""

    def __call__(self, connection: Connection, data: bytes) -> bool: ...


class Connection(asyncio.Protocol):
    """See the module head. `serve` is called with each complete request and must end in `done()` or a close."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        stats: Stats,
        serve: Serve,
        members: set[Connection],
        fast: Fast | None = None,
    ) -> None:
        self.loop = loop
        self.stats = stats
        self.closed = False
        self.busy = False
        self.control = False
        """The last request was for `/sim/*`: faults spare this connection."""
        self.transport: asyncio.Transport
        self._settings = settings
        self._serve = serve
        self._fast = fast
        self._members = members
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[Request] = deque()
        self._parser: Any = None
        self._fresh()
        self._served = 0
        self._mid_request = False
        self._drain: asyncio.Future[None] | None = None
        self.paused = False
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._members.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stats.connected(transport.get_extra_info("ssl_object"))
        self._idle_since = self.loop.time()
        self._idle_timer = self.loop.call_later(self._settings.keep_alive_s, self._idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._members.discard(self)
        self.stats.open -= 1
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        if self._task is not None:
            self._task.cancel()
        self._queue.clear()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self.closed or self.transport.is_closing():
            return
        if self._fast is not None and not self._mid_request and not self.busy and self._fast(self, data):
            self._served += 1
            self._idle_since = self.loop.time()
            return
        self._mid_request = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse()
        except httptools.HttpParserError:
            self._refuse()

    # -- httptools callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._fresh_message()

    def on_url(self, url: bytes) -> None:
        self._grew(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grew(len(name) + len(value) + 4)
        if len(self._headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        self._headers.append((name.lower(), value))
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        if self._expects and not self.busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._settings.max_body_bytes:
            raise ValueError("body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._mid_request = False
        self._served += 1
        path, _, query = self._url.decode("latin-1").partition("?")
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._url.decode("latin-1"),
            path,
            query,
            self._headers,
            b"".join(self._body) if len(self._body) != 1 else self._body[0],
            self._parser.should_keep_alive(),
            self._served,
        )
        self._fresh_message()
        if self.busy:
            self._queue.append(request)
            # One read's worth of pipelined requests may be parsed; no more is read until they are answered.
            self.transport.pause_reading()
        else:
            self._start(request)

    # -- for exchanges ------------------------------------------------------------------------------------------

    def done(self, keep_alive: bool) -> None:
        """The exchange is over: go on with the next request, wait for one, or close."""
        self.busy = False
        self._task = None
        if self.closed:
            return
        if not keep_alive:
            self.transport.close()
            return
        self._idle_since = self.loop.time()
        if self._queue:
            self._start(self._queue.popleft())
        elif not self.transport.is_reading():
            self.transport.resume_reading()

    async def drain(self) -> None:
        """Waits until the transport wants more bytes."""
        while self.paused and not self.closed:
            self._drain = self.loop.create_future()
            await self._drain

    async def flushed(self, timeout_s: float = 2.0) -> None:
        """Waits until the peer's kernel has everything (so that a reset does not overtake it)."""
        give_up = self.loop.time() + timeout_s
        while not self.closed and self.loop.time() < give_up:
            sock = self.transport.get_extra_info("socket")
            pending = self.transport.get_write_buffer_size()
            if not pending and sock is not None and sock.family != socket.AF_UNIX:
                pending = struct.unpack("i", fcntl.ioctl(sock.fileno(), _SIOCOUTQ, b"\0" * 4))[0]
            if not pending:
                return
            await asyncio.sleep(0.002)

    def fin(self) -> None:
        """Closes after what was written (FIN, or TLS close_notify and FIN)."""
        if not self.closed:
            self.transport.close()

    def reset(self) -> None:
        """Drops the connection; the peer of a TCP connection sees RST."""
        if self.closed:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # -- inside -------------------------------------------------------------------------------------------------

    def _start(self, request: Request) -> None:
        self.busy = True
        self.control = request.path.startswith("/sim/")
        self._task = self._serve(self, request)

    def _fresh(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._fresh_message()

    def _fresh_message(self) -> None:
        self._url = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._expects = False

    def _grew(self, n: int) -> None:
        self._head_bytes += n
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("head too large")

    def _refuse(self) -> None:
        self.stats.malformed += 1
        if not self.busy:
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_BAD), _BAD)
            )
        self.transport.close()

    def _idle(self) -> None:
        left = self._idle_since + self._settings.keep_alive_s - self.loop.time()
        if self.busy or self._mid_request:
            left = self._settings.keep_alive_s
        elif left <= 0:
            self.transport.close()
            return
        self._idle_timer = self.loop.call_later(left, self._idle)
