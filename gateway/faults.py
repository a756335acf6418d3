"""What a client is told of each failure of a backend: one table from upstream kinds to gateway kinds."""

from __future__ import annotations

from .errors import Fault, Kind
from .upstream.fault import FaultKind, UpstreamFault

_KINDS: dict[FaultKind, tuple[Kind, str]] = {
    FaultKind.CONNECT_FAILED: (Kind.UPSTREAM_BROKEN, "the backend refused the connection"),
    FaultKind.CONNECT_TIMEOUT: (Kind.CONNECT_TIMEOUT, "no connection to the backend within connect_s"),
    FaultKind.TLS_FAILED: (Kind.UPSTREAM_BROKEN, "the TLS handshake with the backend failed"),
    FaultKind.DNS_FAILED: (Kind.UPSTREAM_BROKEN, "the backend's name does not resolve"),
    FaultKind.CLOSED: (
        Kind.UPSTREAM_BROKEN,
        "the backend closed the connection before its answer was complete",
    ),
    FaultKind.PROTOCOL: (Kind.UPSTREAM_BROKEN, "the backend's answer is not valid HTTP"),
    FaultKind.FIRST_BYTE_TIMEOUT: (Kind.FIRST_BYTE_TIMEOUT, "the backend sent nothing within first_byte_s"),
    FaultKind.BETWEEN_CHUNKS_TIMEOUT: (
        Kind.BETWEEN_CHUNKS_TIMEOUT,
        "the backend sent nothing more within between_chunks_s",
    ),
    FaultKind.TOTAL_TIMEOUT: (Kind.TOTAL_TIMEOUT, "the answer was not complete within total_s"),
    FaultKind.TOO_LARGE: (Kind.UPSTREAM_TOO_LARGE, "the backend's response head is too large"),
}


def fault_of(fault: UpstreamFault) -> Fault:
    """The fault to tell a client; the upstream's detail stays in the log."""
    kind, message = _KINDS[fault.kind]
    return Fault(kind, message)
