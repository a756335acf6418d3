"""A request and a response as bytes and plain values: what the pipeline sees of HTTP, whatever the server host is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class RawRequest:
    """One HTTP request, its body read.

    ``path`` is percent-decoded (the server host does that); ``query`` is what follows
    the question mark, without it. ``forwarded`` are the header lines that may go upstream, ready to be sent.
    ``body`` is the very object that was received. ``cache_control`` and ``cache_ttl`` are the fields
    ``Cache-Control`` and ``x-penstock-cache-ttl``, empty where there are none.
    """

    __slots__ = (
        *("body", "cache_control", "cache_ttl", "content_type", "forwarded", "method", "path", "query"),
        "request_id",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        forwarded: str,
        content_type: str,
        request_id: str,
        body: bytes,
        cache_control: str = "",
        cache_ttl: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.forwarded = forwarded
        self.content_type = content_type
        self.request_id = request_id
        self.body = body
        self.cache_control = cache_control
        self.cache_ttl = cache_ttl


class StreamOut(Protocol):
    """The body of a response that has begun. ``send`` never waits; it raises :class:`ClientGone`."""

    def send(self, data: bytes) -> None: ...

    def send_all(self, pieces: Sequence[bytes]) -> None:
        """As ``send`` of each, for the whole of an answer that cost nobody anything."""

    def acked(self) -> tuple[int, int] | None:
        """(bytes of this connection the client's kernel has acknowledged, bytes still queued), if known."""


class Out(Protocol):
    """Where a response goes. Exactly one of the two is called, once.

    One that was opened as a stream while it waited goes on by ``stream``; ``respond`` raises :class:`Fault` there.
    """

    def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...

    def stream(self, status: int, headers: list[tuple[str, str]]) -> StreamOut: ...

    def acked(self) -> tuple[int, int] | None:
        """As in :class:`StreamOut`; None means that a long body cannot be paced there."""


class ClientGone(Exception):
    """The client has closed the connection; nothing more can be sent."""
