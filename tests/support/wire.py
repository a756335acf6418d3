"""A client made of a socket: it sends any bytes and reads what comes back, as no HTTP library lets one."""

import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import httptools
import msgspec

WATCHDOG_S = 30.0


@dataclass
class Reply:
    """One response; `complete` is False when the connection ended before it did."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    headed: bool = False

    def header(self, name: str) -> str | None:
        """The field's value; None without one. Fails when there are two."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} stands {len(values)} times"
        return values[0] if values else None

    def json(self) -> dict[str, dict[str, object]]:
        """The body, decoded."""
        return msgspec.json.decode(self.body, type=dict)

    @property
    def code(self) -> object:
        """The error object's code."""
        return self.json()["error"]["code"]

    @property
    def more(self) -> int:
        """How many bytes may be read without taking any of a response behind this one (chunked ones have none)."""
        if not self.headed:
            return 1
        length = self.header("content-length")
        return min(65536, int(length) - len(self.body)) if length else 65536

    # ---- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class Wire:
    """A connection to `port` on loopback. Every read has a watchdog: a hang is a TimeoutError."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WATCHDOG_S)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        """Send all of it; a server that closes meanwhile is no error here, `reply` will tell."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)
        return self

    def finish(self) -> Self:
        """Say that nothing more will be sent (FIN)."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read(self, size: int = 65536) -> bytes:
        """What comes next; empty at the end, however it came."""
        try:
            return self.socket.recv(size)
        except ConnectionError:
            return b""

    def reply(self, *, to_head: bool = False) -> Reply | None:
        """The next final response; None when the connection closed without a byte of one.

        `to_head`: it answers a HEAD request, so no body follows whatever its Content-Length says.
        """
        while True:
            reply = self._reply(to_head)
            if reply is None or reply.status >= 200:
                return reply

    def _reply(self, to_head: bool) -> Reply | None:
        reply = Reply()
        parser = httptools.HttpResponseParser(reply)
        got = False
        while not reply.complete:
            data = self.read(reply.more)
            if not data:
                break
            got = True
            parser.feed_data(data)
            if reply.headed and not reply.status:
                reply.status = parser.get_status_code()
                if reply.status < 200:
                    return reply
                if to_head:
                    reply.complete = True
        return reply if got else None


def request(
    path: str = "/v1/chat/completions",
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A well-formed request; `headers` replace or extend the usual ones, names in lower case."""
    fields = {
        "host": "test",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def ask(port: int, path: str = "/v1/chat/completions", body: bytes = b"", **options: object) -> Reply:
    """One request on a connection of its own, and its response, which must come."""
    with Wire(port) as wire:
        reply = wire.send(request(path, body, **options)).reply()  # type: ignore[arg-type]
    assert reply is not None, "the connection closed without a response"
    assert reply.complete
    return reply
