"""A tap between the gateway and a backend: passes every byte on as it is and keeps both sides of each exchange.

Strategy: with what the backend really received and really answered at hand, "the client got the backend's answer, byte
for byte" needs no deterministic backend; the same assertion holds before a simulator and before a real vLLM. One thread
per direction, for a test's few connections. A reset from either side is passed on as a reset. A socket is closed when
no thread can be using it any more: its number may be another's a moment later.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httptools

from ..support.procs import wait_until

_READ_BYTES = 65536


@dataclass
class Message:
    """One HTTP message as it passed: names of headers in lower case, values as sent, the body without its framing."""

    headers: list[tuple[str, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False

    def values(self, name: str) -> list[bytes]:
        """Every value of one header."""
        return [value for key, value in self.headers if key == name]


@dataclass
class Exchange:
    """A request as the backend received it, and the backend's answer."""

    method: str = ""
    target: str = ""
    status: int = 0
    request: Message = field(default_factory=Message)
    response: Message = field(default_factory=Message)


class _Side:
    """httptools callbacks that fill messages, requests or responses."""

    def __init__(self, connection: _Connection, *, response: bool) -> None:
        self._connection = connection
        self._response = response
        self._parser: httptools.HttpRequestParser | httptools.HttpResponseParser
        self._parser = httptools.HttpResponseParser(self) if response else httptools.HttpRequestParser(self)
        self._exchange = Exchange()
        self._message = Message()

    def feed(self, data: bytes) -> None:
        with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._exchange = self._connection.answering() if self._response else self._connection.asking()
        self._message = self._exchange.response if self._response else self._exchange.request

    def on_url(self, url: bytes) -> None:
        self._exchange.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._message.headers.append((name.decode("latin-1").lower(), value))

    def on_headers_complete(self) -> None:
        if self._response:
            assert isinstance(self._parser, httptools.HttpResponseParser)
            self._exchange.status = self._parser.get_status_code()
        else:
            assert isinstance(self._parser, httptools.HttpRequestParser)
            self._exchange.method = self._parser.get_method().decode("ascii")

    def on_body(self, body: bytes) -> None:
        self._message.body += body

    def on_message_complete(self) -> None:
        self._message.whole = True


class _Connection:
    """Pairs answers with requests, in order."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._asked: list[Exchange] = []

    def asking(self) -> Exchange:
        exchange = Exchange()
        self._asked.append(exchange)
        self._tap.add(exchange)
        return exchange

    def answering(self) -> Exchange:
        return self._asked.pop(0) if self._asked else Exchange()


class Tap:
    """Listens on a free loopback port before `host:port`; a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._backend = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._exchanges: list[Exchange] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener, socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for sock in list(self._open):
            _shut(sock, socket.SHUT_RDWR)

    def add(self, exchange: Exchange) -> None:
        with self._lock:
            self._exchanges.append(exchange)

    def exchanges(self) -> list[Exchange]:
        """Every exchange so far, health probes and scrapes left out."""
        with self._lock:
            return [
                e for e in self._exchanges if e.target not in ("/health", "/metrics", "/load", "/version")
            ]

    def of(self, request_id: str) -> Exchange:
        """The last exchange that carried this `x-request-id`, once its answer has passed whole."""

        def found() -> Exchange | None:
            for exchange in reversed(self.exchanges()):
                if request_id.encode("latin-1") in exchange.request.values("x-request-id"):
                    return exchange if exchange.response.whole else None
            return None

        return wait_until(found, 20, f"an exchange with the backend for {request_id}") or Exchange()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                backend = socket.create_connection(self._backend, timeout=10)
            except OSError:
                _abort(client)
                client.close()
                continue
            backend.settimeout(None)
            connection = _Connection(self)
            for sock in (client, backend):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(sock)
            pumps = [
                threading.Thread(target=self._pump, args=(source, sink, _Side(connection, response=answers)))
                for source, sink, answers in ((client, backend, False), (backend, client, True))
            ]
            threading.Thread(target=self._until_over, args=(pumps, client, backend), daemon=True).start()

    def _until_over(self, pumps: list[threading.Thread], *sockets: socket.socket) -> None:
        for pump in pumps:
            pump.daemon = True
            pump.start()
        for pump in pumps:
            pump.join()
        for sock in sockets:
            self._open.discard(sock)
            sock.close()

    def _pump(self, source: socket.socket, sink: socket.socket, side: _Side) -> None:
        while True:
            try:
                data = source.recv(_READ_BYTES)
            except OSError:
                _abort(sink)
                break
            if not data:
                _shut(sink, socket.SHUT_WR)
                break
            side.feed(data)
            try:
                sink.sendall(data)
            except OSError:
                _abort(source)
                break


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(how)


def _abort(sock: socket.socket) -> None:
    """Makes its close a reset, and wakes whoever reads from it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _shut(sock, socket.SHUT_RD)


@contextlib.contextmanager
def tap(url: str) -> Iterator[Tap]:
    """A tap before the server at `url` (http, host and port)."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    with Tap(host, int(port or 80)) as running:
        yield running
