"""Tells of requests when they have ended: to the access log, and of those that are traced to a collector.

Called at the end of the loop's turn, for all requests of it in a row. Where neither is configured there is none of it,
and requests are plain exchanges.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from random import Random
from time import gmtime, perf_counter_ns, strftime, time_ns
from typing import TYPE_CHECKING, Any

from ...cache.outcome import Outcome
from ..config import Access, Config, Telemetry
from ..metrics import ACCESS_LOST, SPANS_LOST, Metrics
from .access_log import AccessLog, Line
from .tracing import Tracing, Trip

if TYPE_CHECKING:
    from ..endpoints import Endpoint
    from .told import Told

#: Outcomes of requests that have cost something.
_ASKED = frozenset({Outcome.MISS.value, Outcome.BYPASS.value})
_MOST_CHARS = 512
_MS = 1e6
_CLOSE_S = 1.0


class Reporter:
    """One worker's. ``access`` and ``tracing`` are None where they are not configured."""

    def __init__(
        self,
        environ: Mapping[str, str],
        instance: str,
        metrics: Metrics,
        access: Access | None,
        traces: Telemetry | None,
    ) -> None:
        self._metrics = metrics
        self._random = Random(os.urandom(16))
        self.access = AccessLog(access) if access is not None else None
        self.tracing: Tracing | None = None
        if traces is not None:
            headers = environ.get(traces.headers_env, "") if traces.headers_env else ""
            self.tracing = Tracing(traces, headers, f"{instance}-{os.getpid()}", self._random)
        self._clock = _Clock()
        self._reported = 0, 0
        self.report()

    def tell(self, answered: Iterable[tuple[Any, Endpoint | None, str, int, int]]) -> None:
        """Of requests that have ended: the exchange, its endpoint and path, when its body came, and since then."""
        access, tracing, lines = self.access, self.tracing, []
        now, wall_ns = perf_counter_ns(), time_ns()
        time = self._clock.text(wall_ns) if access is not None else ""
        for exchange, endpoint, path, started, total in answered:
            if not exchange.witnessed:
                continue  # it came before this was configured
            told: Told = exchange
            written = access is not None and (
                access.sample == 1.0 or not 0 < told.status < 400 or self._random.random() < access.sample
            )
            traced = tracing is not None and told.span_id
            if not written and not traced:
                continue
            ended = started + total if started else now
            if written:
                lines.append(_line(told, path, time, ended))
            if traced:
                assert tracing is not None
                tracing.put(_trip(told, endpoint, path, wall_ns - now, ended))
        if lines:
            assert access is not None
            access.put(lines)

    def report(self) -> None:
        """Count what was lost since the last time."""
        lost = (
            self.access.outlet.lost if self.access is not None else 0,
            self.tracing.outlet.lost if self.tracing is not None else 0,
        )
        for family, now, before in zip((ACCESS_LOST, SPANS_LOST), lost, self._reported, strict=True):
            self._metrics.count(family, n=now - before)
        self._reported = lost

    def serves(self, config: Config) -> bool:
        """Whether this is what is configured."""
        mine = self.access and self.access.settings, self.tracing and self.tracing.settings
        return mine == (config.log.access, config.telemetry)

    def end(self) -> None:
        """Take nothing more; what waits is still told, in its own time."""
        for outlet in self._outlets():
            outlet.close()
        self.report()

    async def close(self) -> None:
        """As :meth:`end`, and wait for that for a bounded time."""
        self.end()
        for outlet in self._outlets():
            await asyncio.to_thread(outlet.join, _CLOSE_S)
        self.report()

    def _outlets(self) -> list[Any]:
        return [part.outlet for part in (self.access, self.tracing) if part is not None]


class _Clock:
    """Writes times as RFC 3339 has them; a second's text is made once: a datetime costs four times as much."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, wall_ns: int) -> str:
        second, rest = divmod(wall_ns, 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return f"{self._text}.{rest // 1000:06d}Z"


def _line(told: Told, path: str, time: str, ended: int) -> Line:
    began = int(told.began_s * 1e9)
    scope, raw = told.scope, told.raw
    line = Line(
        time=time,
        request_id=told.request_id,
        client=scope.client,
        method=scope.method,
        path=path[:_MOST_CHARS],
        status=told.status,
        ms=(ended - began) / _MS,
        model=told.model,
        error=told.error,
        cache=told.cache,
        request_bytes=len(raw.body) if raw is not None else 0,
        response_bytes=told.sent_bytes,
        trace_id=told.trace_id,
    )
    if told.first_ns:
        line.first_byte_ms = (told.first_ns - began) / _MS
    caller = told.caller
    if caller is not None:
        line.tenant, line.key = caller.tenant, caller.id
    if told.cache in _ASKED:
        line.backend, line.attempts, line.fallback = _answered_by(told)
        if told.reason is not None:
            line.cache_reason = told.reason.value
    if told.upstream_ns:
        line.upstream_ms = told.upstream_ns / _MS
    if told.queued_ns:
        line.queue_ms, line.wake_ms = (
            (told.queued_ns - told.wake_ns) / _MS or None,
            told.wake_ns / _MS or None,
        )
    if told.far_ns:
        line.redis_ms = told.far_ns / _MS
    if told.body_ns:
        line.body_ms = told.body_ns / _MS
    if told.tokens is not None:
        line.prompt_tokens, line.completion_tokens = told.tokens
    return line


def _answered_by(told: Told) -> tuple[str, int, str]:
    """The last backend, how many attempts there were, and the model that stood in."""
    fields = dict(told.fields or ())
    backend, attempts = fields.get("x-penstock-backend", ""), fields.get("x-penstock-attempts", "0")
    if not backend and told.attempts:
        return told.attempts[-1].backend, len(told.attempts), ""
    return backend, int(attempts), fields.get("x-penstock-fallback", "")


def _trip(told: Told, endpoint: Endpoint | None, path: str, wall_ns: int, ended: int) -> Trip:
    scope, caller, raw = told.scope, told.caller, told.raw
    return Trip(
        told.trace_id,
        told.span_id,
        told.parent.span_id if told.parent is not None else "",
        told.trace_state,
        wall_ns,
        int(told.began_s * 1e9),
        ended,
        scope.method,
        path[:_MOST_CHARS],
        endpoint.path if endpoint is not None else "",
        scope.scheme,
        scope.http_version,
        scope.client,
        told.status,
        told.error,
        told.model,
        {
            "penstock.request_id": told.request_id,
            "penstock.cache": told.cache,
            "penstock.cache_reason": told.reason.value if told.reason is not None else "",
            "penstock.tenant": caller.tenant if caller is not None else "",
            "penstock.key": caller.id if caller is not None else "",
            "penstock.body_s": told.body_ns / 1e9,
            "penstock.redis_s": told.far_ns / 1e9,
            "penstock.queue_s": (told.queued_ns - told.wake_ns) / 1e9,
            "penstock.wake_s": told.wake_ns / 1e9,
            "penstock.first_byte_s": (told.first_ns - int(told.began_s * 1e9)) / 1e9
            if told.first_ns
            else 0.0,
            "http.request.body.size": len(raw.body) if raw is not None else 0,
            "http.response.body.size": told.sent_bytes,
        },
        told.beginning or bytes(told.told[:2048]),
        told.tokens,
        told.attempts,
    )
