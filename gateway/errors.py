"""What can go wrong, said once: a closed list of kinds and one table from a kind to its status and words.

A :class:`Fault` is the only exception the request path raises on purpose. It knows its kind, and through the
table its source (who is to blame), its status and whether the same request may be tried elsewhere. How it is
written down is the dialect's business (:mod:`penstock.gateway.dialects`), not known here.

Statuses and words: OpenAI's error object ``{"error": {"message", "type", "param", "code"}}``
(https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Source(enum.Enum):
    """Who caused a fault."""

    CLIENT = "client"
    GATEWAY = "gateway"
    UPSTREAM = "upstream"


class Kind(enum.Enum):
    """Every fault a client can be told of; the value is the ``code`` in the error object."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    MISSING_HOST = "missing_host"
    UNAUTHORIZED = "invalid_api_key"
    MODEL_FORBIDDEN = "model_not_allowed"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TIMEOUT = "body_timeout"
    BODY_BROKEN = "body_broken"
    BODY_MISSING = "body_missing"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limit_exceeded"
    QUEUE_FULL = "queue_full"
    BUFFERS_FULL = "buffers_full"
    CLIENT_CLOSED = "client_closed_request"
    CLIENT_STALLED = "client_stalled"
    STREAM_UNPACED = "stream_unpaced"
    INTERNAL = "internal_error"
    UPSTREAM_BROKEN = "upstream_broken"
    UPSTREAM_INCOMPLETE = "upstream_incomplete"
    UPSTREAM_TOO_LARGE = "upstream_response_too_large"
    UPSTREAM_NO_STREAM = "upstream_no_stream"
    UPSTREAM_REFUSED = "upstream_refused"
    FLIGHT_LOST = "flight_lost"
    LOOP = "request_loop"
    NO_BACKEND = "no_healthy_backend"
    DRAINING = "draining"
    KEYS_UNKNOWN = "keys_unavailable"
    WAKE_FAILED = "wake_failed"
    WAKE_TIMEOUT = "wake_timeout"
    QUEUE_TIMEOUT = "queue_timeout"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    BETWEEN_CHUNKS_TIMEOUT = "between_chunks_timeout"
    TOTAL_TIMEOUT = "total_timeout"


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the table: the HTTP status, OpenAI's ``type`` and the source of a kind."""

    status: int
    type: str
    source: Source


_REQUEST, _RATE, _SERVER = "invalid_request_error", "rate_limit_error", "server_error"

#: The one table from a kind to what a client is told.
TABLE: dict[Kind, Spec] = {
    Kind.INVALID_JSON: Spec(400, _REQUEST, Source.CLIENT),
    Kind.INVALID_REQUEST: Spec(400, _REQUEST, Source.CLIENT),
    Kind.MISSING_HOST: Spec(400, _REQUEST, Source.CLIENT),
    Kind.UNAUTHORIZED: Spec(401, "authentication_error", Source.CLIENT),
    Kind.MODEL_FORBIDDEN: Spec(403, _REQUEST, Source.CLIENT),
    Kind.NOT_FOUND: Spec(404, _REQUEST, Source.CLIENT),
    Kind.MODEL_NOT_FOUND: Spec(404, _REQUEST, Source.CLIENT),
    Kind.METHOD_NOT_ALLOWED: Spec(405, _REQUEST, Source.CLIENT),
    Kind.BODY_TIMEOUT: Spec(408, _REQUEST, Source.CLIENT),
    Kind.BODY_BROKEN: Spec(400, _REQUEST, Source.CLIENT),
    Kind.BODY_MISSING: Spec(411, _REQUEST, Source.CLIENT),
    Kind.BODY_TOO_LARGE: Spec(413, _REQUEST, Source.CLIENT),
    Kind.UNSUPPORTED_MEDIA_TYPE: Spec(415, _REQUEST, Source.CLIENT),
    Kind.RATE_LIMITED: Spec(429, _RATE, Source.CLIENT),
    Kind.QUEUE_FULL: Spec(429, _RATE, Source.GATEWAY),
    Kind.BUFFERS_FULL: Spec(429, _RATE, Source.GATEWAY),
    Kind.CLIENT_CLOSED: Spec(499, _REQUEST, Source.CLIENT),
    Kind.CLIENT_STALLED: Spec(499, _REQUEST, Source.CLIENT),
    Kind.STREAM_UNPACED: Spec(500, _SERVER, Source.GATEWAY),
    Kind.INTERNAL: Spec(500, _SERVER, Source.GATEWAY),
    Kind.UPSTREAM_BROKEN: Spec(502, _SERVER, Source.UPSTREAM),
    Kind.UPSTREAM_INCOMPLETE: Spec(502, _SERVER, Source.UPSTREAM),
    Kind.UPSTREAM_TOO_LARGE: Spec(502, _SERVER, Source.UPSTREAM),
    Kind.UPSTREAM_NO_STREAM: Spec(502, _SERVER, Source.UPSTREAM),
    Kind.UPSTREAM_REFUSED: Spec(502, _SERVER, Source.UPSTREAM),  # a refusal has its own (dialects.refusal)
    Kind.FLIGHT_LOST: Spec(502, _SERVER, Source.GATEWAY),
    Kind.LOOP: Spec(502, _SERVER, Source.GATEWAY),
    Kind.NO_BACKEND: Spec(503, _SERVER, Source.UPSTREAM),
    Kind.DRAINING: Spec(503, _SERVER, Source.GATEWAY),
    Kind.KEYS_UNKNOWN: Spec(503, _SERVER, Source.GATEWAY),
    Kind.WAKE_FAILED: Spec(503, _SERVER, Source.UPSTREAM),
    Kind.WAKE_TIMEOUT: Spec(504, _SERVER, Source.UPSTREAM),
    Kind.QUEUE_TIMEOUT: Spec(504, _SERVER, Source.GATEWAY),
    Kind.CONNECT_TIMEOUT: Spec(504, _SERVER, Source.UPSTREAM),
    Kind.FIRST_BYTE_TIMEOUT: Spec(504, _SERVER, Source.UPSTREAM),
    Kind.BETWEEN_CHUNKS_TIMEOUT: Spec(504, _SERVER, Source.UPSTREAM),
    Kind.TOTAL_TIMEOUT: Spec(504, _SERVER, Source.UPSTREAM),
}


class Fault(Exception):
    """A request cannot be served, and why.

    ``message`` is for the client and never holds a body, a key or an internal address beyond the backend's
    configured name. ``param`` is the field path (``messages[2].role``) where one field is to blame.
    ``retry_after_s`` becomes ``Retry-After`` and ``retry-after-ms``; ``headers`` are further header fields.
    """

    __slots__ = ("headers", "kind", "message", "param", "retry_after_s")

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    @property
    def spec(self) -> Spec:
        """The table's row for this fault's kind."""
        return TABLE[self.kind]

    @property
    def status(self) -> int:
        """The HTTP status that the client is told, or that metrics count once a response has begun."""
        return TABLE[self.kind].status

    @property
    def type(self) -> str:
        """The ``type`` in OpenAI's error object."""
        return TABLE[self.kind].type

    @property
    def code(self) -> str | int:
        """The ``code`` in the error object."""
        return self.kind.value


def shutting_down() -> Fault:
    """What is said to those who cannot be answered any more by a node that drains."""
    return Fault(Kind.DRAINING, "this node is shutting down", retry_after_s=1.0)
