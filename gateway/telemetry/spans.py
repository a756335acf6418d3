"""Makes spans of traced requests and sends them to a collector, by OpenTelemetry's own exporter; in a thread.

Names follow OpenTelemetry's semantic conventions for HTTP and, where there is one for it, generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/), what they have no name for begins with `penstock.`.
The one file that knows OpenTelemetry's SDK, which is an extra and takes long to be imported: it is in the thread.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from .told import Attempt
    from .tracing import Trip

log = logging.getLogger(__name__)

_PATH = "/v1/traces"
_TIMEOUT_S = 5.0
#: How long the loop may wait for this thread to let go of the interpreter (s); Python's own 5 ms are too long for it.
_SWITCH_S = 0.0005

#: What an endpoint does, in the conventions' words where they have one.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}
_MODEL = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.){1,256})"')


class Export:
    """Where traces go. ``headers``: `name=value,name=value`, as in OTEL_EXPORTER_OTLP_HEADERS."""

    def __init__(self, endpoint: str, headers: str, instance: str) -> None:
        self._endpoint = endpoint.rstrip("/") + _PATH
        self._headers = dict(_fields(headers))
        self._instance = instance
        self._made: tuple[Any, _Maker] | None = None
        self._last = _Last()
        self._failing = False

    def deliver(self, trips: list[Trip]) -> int:
        """Send what they were; how many spans did not get there."""
        exporter, maker = self._made = self._made or self._make()
        spans = [span for trip in trips for span in maker.spans(trip)]
        # its value, so that nothing of the SDK is needed here: 0 is success
        lost = 0 if exporter.export(spans).value == 0 else len(spans)
        if lost and not self._failing:
            log.warning("traces_lost endpoint=%s: %s", self._endpoint, self._last.message)
        elif self._failing and not lost:
            log.warning("traces_sent endpoint=%s", self._endpoint)
        self._failing = bool(lost)
        return lost

    def _make(self) -> tuple[Any, _Maker]:
        sys.setswitchinterval(min(_SWITCH_S, sys.getswitchinterval()))
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        # what they say of each failure is said once here
        theirs = logging.getLogger("opentelemetry")
        theirs.propagate = False
        theirs.handlers[:] = [self._last]
        exporter = OTLPSpanExporter(endpoint=self._endpoint, headers=self._headers, timeout=_TIMEOUT_S)
        return exporter, _Maker(self._instance)


class _Maker:
    """Makes the SDK's spans."""

    def __init__(self, instance: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        own: dict[str, str | int] = {
            "service.name": "penstock",
            "service.version": version("penstock"),
            "service.instance.id": instance,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
        self._resource = Resource(own).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("penstock", version("penstock"))
        self._trace = trace
        self._span = ReadableSpan
        self._error = trace.Status(trace.StatusCode.ERROR)
        self._fine = trace.Status()

    def spans(self, trip: Trip) -> list[Any]:
        """The request's own span, then one for each call upstream."""
        kind = self._trace.SpanKind
        state = self._trace.TraceState.from_header([trip.state]) if trip.state else None
        server = self._context(trip.trace_id, trip.span_id, state)
        parent = self._context(trip.trace_id, trip.parent_id, state, True) if trip.parent_id else None
        ended = trip.wall_ns + trip.ended_ns
        made = [
            self._span(
                name=f"{trip.method} {trip.route}".rstrip(),
                context=server,
                parent=parent,
                resource=self._resource,
                attributes=_of_request(trip),
                kind=kind.SERVER,
                status=self._error if trip.status >= 500 else self._fine,
                start_time=trip.wall_ns + trip.began_ns,
                end_time=ended,
                instrumentation_scope=self._scope,
            )
        ]
        for number, attempt in enumerate(trip.attempts):
            last = number == len(trip.attempts) - 1
            attributes = _of_attempt(trip, attempt, number, last)
            made.append(
                self._span(
                    name=f"{attributes.get('gen_ai.operation.name', trip.method)} {attempt.model}",
                    context=self._context(trip.trace_id, attempt.span_id, state),
                    parent=server,
                    resource=self._resource,
                    attributes=attributes,
                    kind=kind.CLIENT,
                    status=self._error if "error.type" in attributes else self._fine,
                    start_time=trip.wall_ns + attempt.began_ns,
                    end_time=trip.wall_ns + attempt.ended_ns if attempt.ended_ns else ended,
                    instrumentation_scope=self._scope,
                )
            )
        return made

    def _context(self, trace_id: str, span_id: str, state: Any, remote: bool = False) -> Any:
        sampled = self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        return self._trace.SpanContext(int(trace_id, 16), int(span_id, 16), remote, sampled, state)


def _of_request(trip: Trip) -> dict[str, str | int | float]:
    client, _, port = trip.client.rpartition(":")
    found: dict[str, str | int | float] = {
        "http.request.method": trip.method,
        "url.path": trip.path,
        "url.scheme": trip.scheme,
        "network.protocol.version": trip.version,
        "client.address": client.strip("[]") or trip.client,
        "http.response.status_code": trip.status,
        **{name: value for name, value in trip.values.items() if value},
    }
    if port.isdigit():
        found["client.port"] = int(port)
    if trip.route:
        found["http.route"] = trip.route
    if trip.model:
        found["gen_ai.request.model"] = trip.model
    if trip.route in _OPERATIONS:
        found["gen_ai.operation.name"] = _OPERATIONS[trip.route]
    error = trip.error or (str(trip.status) if trip.status >= 500 else "")
    if error:
        found["error.type"] = error
    return found


def _of_attempt(trip: Trip, attempt: Attempt, number: int, last: bool) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {
        "http.request.method": trip.method,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": attempt.model,
    }
    if trip.route in _OPERATIONS:
        found["gen_ai.operation.name"] = _OPERATIONS[trip.route]
    host, _, port = attempt.backend.rpartition(":")
    if port.isdigit():
        found["server.address"], found["server.port"] = host.strip("[]"), int(port)
    else:
        found["server.address"] = attempt.backend  # a socket's path
    if number:
        found["http.request.resend_count"] = number
    if attempt.status:
        found["http.response.status_code"] = attempt.status
    error = attempt.cause or (str(attempt.status) if attempt.status >= 400 else "")
    if last and not attempt.ended_ns:
        # what came of the request came of this call
        error = error or trip.error
        if trip.tokens is not None:
            found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"] = trip.tokens
        model = _MODEL.search(trip.beginning)
        if model is not None:
            found["gen_ai.response.model"] = model[1].decode("utf-8", "replace")
    if error:
        found["error.type"] = error
    return found


def _fields(text: str) -> list[tuple[str, str]]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return [(name.strip().lower(), unquote(value.strip())) for name, _, value in pairs if name.strip()]


class _Last(logging.Handler):
    """Keeps the last thing that was said."""

    def __init__(self) -> None:
        super().__init__()
        self.message = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()[:300]
