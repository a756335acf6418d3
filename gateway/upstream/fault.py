"""What can go wrong between this worker and a backend: one closed list of kinds, one exception."""

from __future__ import annotations

import enum


class FaultKind(enum.Enum):
    """Why a call to a backend failed. Every failure of this package is one of these."""

    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_FAILED = "tls_failed"
    #: the connection ended or was reset before the response was complete
    CLOSED = "closed"
    #: what came back is not a response we would relay
    PROTOCOL = "protocol"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    BETWEEN_CHUNKS_TIMEOUT = "between_chunks_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    #: the response's header section, or its framing, is over the limits
    TOO_LARGE = "too_large"


class UpstreamFault(Exception):
    """A call to a backend failed.

    ``reused`` says that the connection had served a call before, ``got_bytes`` that at least one byte of the
    response had arrived: a reused connection that closed without a byte is a stale keep-alive connection, and
    the one kind of ``CLOSED`` that is safe to send again, but for ``unseen``: the backend itself has said that
    it did nothing with the request (HTTP/2's GOAWAY and REFUSED_STREAM). ``detail`` is for logs; it never holds
    bytes of a body or a header value.
    """

    def __init__(
        self,
        kind: FaultKind,
        detail: str = "",
        *,
        reused: bool = False,
        got_bytes: bool = False,
        unseen: bool = False,
    ) -> None:
        super().__init__(f"{kind.value}: {detail}" if detail else kind.value)
        self.kind = kind
        self.detail = detail
        self.reused = reused
        self.got_bytes = got_bytes
        self.unseen = unseen

    @property
    def stale(self) -> bool:
        """Whether the server had given up this connection, or would not take the request on it: it has not acted."""
        return self.unseen or (self.kind is FaultKind.CLOSED and self.reused and not self.got_bytes)


class BodyTooLarge(Exception):
    """A response body is longer than the reader was willing to hold. ``limit_bytes`` is that bound."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the response body is over {limit_bytes} bytes")
        self.limit_bytes = limit_bytes
