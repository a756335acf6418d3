"""HTTP/1.1 as bytes: a parsed request, a response head, a chunk.

Refuses to know sockets and endpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs

Header = tuple[bytes, bytes]

LAST_CHUNK = b"0\r\n\r\n"
# Fixed on purpose: answers to equal requests are equal to the byte.
DATE = b"Thu, 01 Jan 2026 00:00:00 GMT"
_REASONS = {int(s): s.phrase.encode() for s in HTTPStatus}


@dataclass(slots=True)
class Request:
    """One request, complete. `path` is the decoded target without its query; header names are lower case."""

    method: str
    target: str
    path: str
    query: str
    headers: list[Header]
    body: bytes
    keep_alive: bool
    ordinal: int
    """1 for the first request of its connection."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def parameters(self) -> dict[str, list[str]]:
        """The query's fields; at most 64 are read."""
        try:
            return parse_qs(self.query, keep_blank_values=True, max_num_fields=64)
        except ValueError:
            return {}


def head(
    status: int,
    *,
    content_type: bytes | None,
    length: int | None,
    close: bool,
    extra: tuple[Header, ...] | list[Header] = (),
) -> bytes:
    """A response head as uvicorn writes it; `length` None means chunked."""
    out = [
        b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: uvicorn\r\n"
        % (status, _REASONS.get(status, b"Unknown"), DATE)
    ]
    if length is not None:
        out.append(b"content-length: %d\r\n" % length)
    if content_type is not None:
        out.append(b"content-type: %b\r\n" % content_type)
    out.extend(b"%b: %b\r\n" % pair for pair in extra)
    if length is None:
        out.append(b"transfer-encoding: chunked\r\n")
    if close:
        out.append(b"connection: close\r\n")
    out.append(b"\r\n")
    return b"".join(out)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
