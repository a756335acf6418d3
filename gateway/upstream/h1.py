"""HTTP/1.1 responses: bytes in, a head and body pieces out. No I/O, no clock, no knowledge of connections.

llhttp (through httptools) reads the grammar, strictly; this file decides what the grammar leaves open and
what a gateway must refuse: framing that two readers could understand differently (RFC 9112 sections 6.1 and
6.3), status codes nobody may relay, heads without end. How the bytes are split over reads changes nothing.
"""

from __future__ import annotations

from typing import Any

import httptools

from .fault import FaultKind

HEAD_LIMIT_BYTES = 64 * 1024
FIELD_LIMIT = 128
#: informational responses accepted before the final one
INTERIM_LIMIT = 16
#: chunk ends noted of one body
MAX_CUTS = 1 << 16


class Refused(Exception):
    """The bytes are no response we accept. ``kind`` is PROTOCOL or TOO_LARGE."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class ResponseReader:
    """Reads the responses of one connection, one after the other.

    ``begin()``, then ``feed()`` until ``done``. After each feed: ``head_done`` says that the final response's
    head is there (``status``, ``headers`` as received, ``content_length``, ``chunked``), and ``pieces`` holds
    the body bytes that arrived since the caller last cleared it. Once ``done``, ``reusable`` says whether
    another response may follow on this connection: it may not after ``Connection: close``, after a body that
    only the end of the connection ends, or when bytes followed the response (nobody asked for those: reading
    them as the next answer is response splitting). Informational responses and trailers are read and dropped.
    """

    __slots__ = (
        "__weakref__",
        "_barren_bytes",
        "_counted",
        "_fault",
        "_feed",
        "_interim",
        "_parser",
        "_taken",
        "_trailer_fields",
        "chunked",
        "content_length",
        "cuts",
        "done",
        "excess",
        "head_done",
        "headers",
        "keep_alive",
        "keep_alive_s",
        "on_body",
        "pieces",
        "status",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        # the parser calls this for each piece of body: the list's own method, so no Python frame is entered
        self.on_body = self.pieces.append
        self._parser: Any = httptools.HttpResponseParser(self)
        self._feed: Any = self._parser.feed_data
        self.keep_alive_s: float | None = None
        #: where chunks end, as offsets in the body, for whoever set a list here; None again past MAX_CUTS
        self.cuts: list[int] | None = None
        self._counted = self._taken = 0
        self.done = True
        self.begin()
        self.done = True

    def begin(self, cuts: list[int] | None = None) -> None:
        """Expect one response, and note in ``cuts`` where the chunks of its body end."""
        self.cuts = cuts
        self._counted = self._taken = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = False
        self.head_done = False
        self.done = False
        self.excess = False
        self._fault: Refused | None = None
        self._interim = 0
        self._trailer_fields = 0
        self._barren_bytes = 0
        self.pieces.clear()

    def feed(self, data: bytes) -> None:
        """Read what arrived. Raises Refused; the pieces read before the offending byte are then still
        there.
        """
        had = len(self.pieces)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.done:
                self.excess = True
                return
            raise self._fault or Refused(FaultKind.PROTOCOL, str(error) or "unreadable") from None
        if self.done:
            return
        # A head, a trailer or a chunk extension can be dribbled for ever without a body byte: bound it.
        if len(self.pieces) == had:
            self._barren_bytes += len(data)
            if self._barren_bytes > HEAD_LIMIT_BYTES:
                raise Refused(
                    FaultKind.TOO_LARGE, f"over {HEAD_LIMIT_BYTES} bytes and no body byte among them"
                )
        else:
            self._barren_bytes = 0

    def take(self) -> bytes:
        """All pieces as one object, and the list empty again; a single piece is not copied."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self.cuts is not None:
            self._count()
            self._counted = 0
        pieces.clear()
        return data

    def _count(self) -> None:
        pieces = self.pieces
        for piece in pieces[self._counted :]:
            self._taken += len(piece)
        self._counted = len(pieces)

    def eof(self) -> bool:
        """The peer ended the connection. True when that is how this response's body ends."""
        if self.head_done and not self.done and self.content_length is None and not self.chunked:
            self.done = True
        return self.done

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another response. Meaningful once ``done``."""
        return self.keep_alive and not self.excess

    def close(self) -> None:
        """Let go of the parser, which refers back to this reader: nothing is left for the cycle collector."""
        self._parser = self._feed = None

    # -- called by the parser ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done:
            self.excess = True
            raise Refused(FaultKind.PROTOCOL, "bytes after the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:
            self._trailer_fields += 1
            if self._trailer_fields > FIELD_LIMIT:
                raise self._refuse(FaultKind.TOO_LARGE, f"over {FIELD_LIMIT} trailer fields")
            return
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        headers = self.headers
        if len(headers) > FIELD_LIMIT:
            raise self._refuse(FaultKind.TOO_LARGE, f"over {FIELD_LIMIT} header fields")
        if not 200 <= status <= 599:
            if not 100 <= status < 200 or status == 101:
                raise self._refuse(FaultKind.PROTOCOL, f"status {status}")
            self._interim += 1
            if self._interim > INTERIM_LIMIT:
                raise self._refuse(FaultKind.PROTOCOL, f"over {INTERIM_LIMIT} informational responses")
            return
        size = 0
        for name, value in headers:
            width = len(name)
            size += width + len(value) + 4
            if width == 14:
                if name.lower() == b"content-length":
                    self.content_length = int(value)
            elif width == 17:
                if name.lower() == b"transfer-encoding":
                    self._check_coding(value)
            elif width == 10 and name.lower() == b"keep-alive":
                self.keep_alive_s = _announced_s(value)
        if size > HEAD_LIMIT_BYTES:
            raise self._refuse(FaultKind.TOO_LARGE, f"a head over {HEAD_LIMIT_BYTES} bytes")
        if status == 204 or status == 304:
            # neither has a body, whatever its fields say (RFC 9112 section 6.3)
            self.content_length = 0
            self.chunked = False
        self.status = status
        self.keep_alive = parser.should_keep_alive()
        self.head_done = True

    def on_chunk_complete(self) -> None:
        cuts = self.cuts
        if cuts is not None and not self.done:
            self._count()
            if len(cuts) >= MAX_CUTS:
                self.cuts = None
            elif self._taken > (cuts[-1] if cuts else 0):  # the last chunk is empty
                cuts.append(self._taken)

    def on_message_complete(self) -> None:
        if self.head_done:
            self.done = True
        else:
            self.headers.clear()

    # -- decisions ---------------------------------------------------------------------------------

    def _refuse(self, kind: FaultKind, detail: str) -> Refused:
        self._fault = Refused(kind, detail)
        return self._fault

    def _check_coding(self, value: bytes) -> None:
        # Only "chunked", once, in HTTP/1.1: a list, a second field or an HTTP/1.0 sender is where readers
        # differ.
        if value.strip().lower() != b"chunked" or self.chunked:
            raise self._refuse(FaultKind.PROTOCOL, "a transfer coding other than chunked")
        if self._parser.get_http_version() != "1.1":
            raise self._refuse(FaultKind.PROTOCOL, "a transfer coding outside HTTP/1.1")
        self.chunked = True


def _announced_s(value: bytes) -> float | None:
    """``timeout=N`` of a Keep-Alive field, in seconds; None when it does not say."""
    for part in value.split(b","):
        key, _, number = part.strip().partition(b"=")
        if key.strip().lower() == b"timeout" and number.strip().isdigit() and len(number) < 9:
            return float(number)
    return None
