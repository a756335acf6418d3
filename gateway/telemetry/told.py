"""An exchange that is told of afterwards: as its base, and keeps what the access log and traces say of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from ..exchange import Exchange
from ..fleet import Backend
from ..raw import RawRequest
from .trace_context import Parent, parent_of, state_of

if TYPE_CHECKING:
    from .tracing import Tracing

#: Lines of a head that carry a trace, and what they say.
_LINES = re.compile(r"^(traceparent|tracestate): ([^\r\n]*)\r\n", re.MULTILINE)
#: As much of an answer is kept to find out which model gave it.
_BEGINNING_BYTES = 2048


class Attempt:
    """One upstream call. Times are perf_counter_ns; ``ended_ns`` 0: it ended with the request. ``span_id`` in hex."""

    __slots__ = ("backend", "began_ns", "cause", "ended_ns", "model", "span_id", "status")

    def __init__(self, backend: str, model: str, began_ns: int) -> None:
        self.backend = backend
        self.model = model
        self.began_ns = began_ns
        self.ended_ns = 0
        self.status = 0
        self.cause = ""
        self.span_id = ""


class Told(Exchange):
    """One request and its way back. ``span_id``: of a request that is traced."""

    #: in slots, because every request has them
    __slots__ = ("fields", "raw", "sent_bytes")

    witnessed = True
    raw: RawRequest | None
    fields: list[tuple[str, str]] | None
    sent_bytes: int
    beginning = b""
    attempts: tuple[Attempt, ...] = ()
    trace_id = ""
    span_id = ""
    parent: Parent | None = None
    trace_state = ""
    #: where its upstream calls' spans come from
    tracing: Tracing | None = None

    @property
    def scope(self) -> Any:
        """What the server host says of the request."""
        return self._scope

    def read_head(self, path: str) -> tuple[RawRequest, int | None]:
        """As in the base; a request that is traced loses what it says of its trace: each call upstream has its own."""
        self.raw = self.fields = None
        self.sent_bytes = 0
        raw, length = Exchange.read_head(self, path)  # super() costs 0.1 µs more
        self.raw = raw
        forwarded = raw.forwarded
        lines = _LINES.findall(forwarded) if "trace" in forwarded else None
        if lines:
            parent = self.parent = parent_of([value for name, value in lines if name == "traceparent"])
            if parent is not None:
                self.trace_id = parent.trace_id
        reporter = self._worker.reporter
        tracing = reporter.tracing if reporter is not None else None
        if tracing is None:
            return raw, length
        self.tracing = tracing
        tracing.begin(self, path)
        if lines and (self.span_id or self.parent is None):
            raw.forwarded = _LINES.sub("", forwarded)
            if self.parent is not None:
                self.trace_state = state_of([value for name, value in lines if name == "tracestate"])
        return raw, length

    def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """As in the base."""
        Exchange.respond(self, status, headers, body)
        self.fields = headers
        self.sent_bytes += len(body)

    def stream(self, status: int, headers: list[tuple[str, str]]) -> Exchange:
        """As in the base."""
        self.fields = headers
        return Exchange.stream(self, status, headers)

    def send(self, data: bytes) -> None:
        """As in the base."""
        Exchange.send(self, data)
        if self.span_id and not self.sent_bytes:
            self.beginning = data[:_BEGINNING_BYTES]
        self.sent_bytes += len(data)

    def send_all(self, pieces: Sequence[bytes]) -> None:
        """As in the base."""
        Exchange.send_all(self, pieces)
        if self.span_id and not self.sent_bytes:
            self.beginning = b"".join(pieces)[:_BEGINNING_BYTES]
        self.sent_bytes += sum(map(len, pieces))

    # ---- upstream calls

    def asks(self, backend: Backend, model: str) -> str:
        """As in :class:`Life`."""
        now = perf_counter_ns()
        if self.attempts:
            self._end(now)
        attempt = Attempt(backend.name, model, now)
        self.attempts = (*self.attempts, attempt)
        return self.tracing.lines(self, attempt) if self.tracing is not None else ""

    def answered(self, status: int) -> None:
        """As in :class:`Life`."""
        self.attempts[-1].status = status

    def missed(self, cause: str) -> None:
        """As in :class:`Life`."""
        self.attempts[-1].cause = cause
        self._end(perf_counter_ns())

    def _end(self, now: int) -> None:
        last = self.attempts[-1]
        last.ended_ns = last.ended_ns or now
