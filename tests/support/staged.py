"""A backend whose answers come piece by piece, when the test says so, whatever their bytes."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator, Sequence

_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_WATCHDOG_S = 60.0


class Staged:
    """Answers every request with the same pieces, each once `go` has let it through and in a write of its own.

    `received` counts requests, probes left out. After the last piece the connection serves the next request, or is
    closed where `close` says so.
    """

    def __init__(self, pieces: Sequence[bytes], *, go: int | None = None, close: bool = False) -> None:
        self.pieces = list(pieces)
        self.received = 0
        self._close = close
        self._go = len(self.pieces) if go is None else go
        self._moved = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def go(self, count: int | None = None) -> None:
        """Let so many more pieces through, or all."""
        with self._moved:
            self._go = len(self.pieces) if count is None else self._go + count
            self._moved.notify_all()

    def hold(self, *pieces: bytes) -> None:
        """From now on say this, but nothing of it yet."""
        with self._moved:
            self.pieces, self._go, self.received = list(pieces), 0, 0

    def __enter__(self) -> Staged:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.go()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := _read(connection):
                if re.match(rb"GET /(health|metrics|load|version)\b", request):
                    connection.sendall(_HEALTHY)
                    continue
                self.received += 1
                for i, piece in enumerate(self.pieces):
                    with self._moved:
                        self._moved.wait_for(lambda i=i: self._go > i, _WATCHDOG_S)
                    connection.sendall(piece)
                if self._close:
                    break
        self._open.discard(connection)


def _read(connection: socket.socket) -> bytes:
    """One whole request, or nothing at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        more = connection.recv(65536)
        if not more:
            return b""
        body += more
    return head


def whole(body: bytes, *, status: bytes = b"200 OK", more: bytes = b"", length: int | None = None) -> bytes:
    """An answer with its length, or with another one; `more` are further fields."""
    size = len(body) if length is None else length
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        *(status, more, size, body),
    )


def head(more: bytes = b"", *, chunked: bool = True) -> bytes:
    """The head of a stream of events; `more` are further fields."""
    coding = b"transfer-encoding: chunked\r\n" if chunked else b"connection: close\r\n"
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n" + more + coding + b"\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk; of nothing: the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(*data: bytes) -> bytes:
    """Chunks and the last one."""
    return b"".join(map(chunk, (*data, b"")))


@contextlib.contextmanager
def staged(*pieces: bytes, go: int | None = None, close: bool = False) -> Iterator[Staged]:
    """A running one; `go`: how many pieces go through at once (all)."""
    with Staged(pieces, go=go, close=close) as running:
        yield running
