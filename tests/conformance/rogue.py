"""Backends that break the rules on purpose: each answers a request with given bytes, then does as it was told.

Health probes are answered as a good server would, so that the gateway keeps sending requests here. A request is read in
full first. Threads, for a test's few connections; nothing here parses more of HTTP than the length of a body.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from enum import Enum

HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Then(Enum):
    """What follows the last byte of the script."""

    KEEP = "keep the connection for the next request"
    CLOSE = "close it"
    RESET = "reset it"
    HANG = "say nothing more, until the peer leaves"


class Rogue:
    """One scripted backend. `script` is sent in pieces, each in a segment of its own; `received` are whole requests."""

    def __init__(self, script: Sequence[bytes], then: Then = Then.KEEP) -> None:
        self.script = list(script)
        self.then = then
        self.received: list[bytes] = []
        self.gone = threading.Event()
        """Set when a peer left before this backend had come to its end."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Rogue:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # woken and gone before the socket is closed: its number may be another's a moment later
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while request := _read_request(sock):
                    if re.match(rb"GET /(health|metrics|load|version)\b", request):
                        sock.sendall(HEALTHY)
                        continue
                    self.received.append(request)
                    if not self._answer(sock):
                        return
            except OSError:
                return
            finally:
                self._open.discard(sock)

    def _answer(self, sock: socket.socket) -> bool:
        """Plays the script of the moment it was asked; whether the connection may serve another request."""
        script, then = self.script, self.then
        try:
            for piece in script:
                sock.sendall(piece)
                _until_read(sock)
        except OSError:
            self.gone.set()
            raise
        if then is Then.HANG:
            while sock.recv(4096):
                continue
            self.gone.set()
            return False
        if then is Then.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return then is Then.KEEP


def _read_request(sock: socket.socket) -> bytes:
    """One whole request, or nothing at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        more = sock.recv(65536)
        if not more:
            return b""
        body += more
    return head + b"\r\n\r\n" + body


def _until_read(sock: socket.socket) -> None:
    """Waits until the peer's kernel has acknowledged what was sent, and a breath more so that it is read on its own."""
    import fcntl
    import termios

    for _ in range(200):
        queued = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        threading.Event().wait(0.005)
        if not queued:
            return


def reply(
    body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"", kind: bytes = b"application/json"
) -> bytes:
    """A whole answer with its length."""
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        kind,
        headers,
        len(body),
        body,
    )


def stream_head(headers: bytes = b"") -> bytes:
    """The head of a chunked SSE answer."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        + headers
        + b"transfer-encoding: chunked\r\n\r\n"
    )


def chunk(data: bytes) -> bytes:
    """One chunk; of nothing: the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.contextmanager
def rogue(*script: bytes, then: Then = Then.KEEP) -> Iterator[Rogue]:
    """A scripted backend, running."""
    with Rogue(script, then) as running:
        yield running
