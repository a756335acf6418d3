"""Counts what became of requests: once each, at the end of the loop's turn (:mod:`penstock.gateway.turn` says why).

What one request means in cells is looked up by endpoint and cache outcome; a hit is one counter and two histograms.
"""

from __future__ import annotations

from typing import Protocol

from ..cache.outcome import NoCache, Outcome
from .endpoints import Endpoint
from .errors import Fault
from .limits.usage import usage_of
from .meter import StreamMeter
from .metrics import (
    ADDED,
    BYPASSES,
    DURATION,
    ERRORS,
    FIRST_TOKEN,
    REQUESTS,
    STAGES,
    TOKENS,
    Metrics,
    Observe,
)

_JOINED = Outcome.COALESCED.value


class Counted(Protocol):
    """The part of an exchange that is counted."""

    model: str
    status: int
    cache: str
    reason: NoCache | None
    first_ns: int
    upstream_ns: int
    queued_ns: int
    wake_ns: int
    far_ns: int
    body_ns: int
    told: bytes | bytearray
    tokens: tuple[int, int] | None
    meter: StreamMeter | None


#: How one kind of request is counted: that there was one, that it passed the cache by, and its times, whole and added.
_Plan = tuple[Observe, Observe | None, Observe, Observe]


class Ledger:
    """One worker's."""

    __slots__ = ("_backend", "_body", "_l2", "_metrics", "_plans", "_queue", "_stream", "_tokens")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._plans: dict[tuple[object, ...], _Plan] = {}
        self._tokens: dict[str, tuple[Observe, Observe]] = {}
        self._body, self._l2, self._queue, self._backend, self._stream = (
            metrics.histogram(STAGES, stage) for stage in ("body", "l2", "queue", "backend", "stream")
        )

    def record(self, one: Counted, endpoint: Endpoint | None, started: int, total: int) -> None:
        """One request has ended. ``started`` (perf_counter_ns): its body was there; 0: it never was. ``total``: since
        then (ns).
        """
        kind = endpoint, one.model, one.status, one.cache, one.reason
        try:
            count, bypass, whole, ahead = self._plans[kind]
        except KeyError:
            count, bypass, whole, ahead = self._plans[kind] = self._plan(one, endpoint)
        count(1)
        if bypass is not None:
            bypass(1)
        if endpoint is None or not started:
            return
        whole(total)
        upstream, queued = one.upstream_ns, one.queued_ns
        if one.first_ns:
            added = one.first_ns - started - upstream - queued
            ahead(added if added > 0 else 0)
        if upstream or queued or one.far_ns or one.body_ns:
            self._stages(one, started, total)

    def failed(self, model: str, fault: Fault) -> None:
        """The gateway says itself that a request failed."""
        self._metrics.count(ERRORS, model, fault.kind.value)

    def _plan(self, one: Counted, endpoint: Endpoint | None) -> _Plan:
        metrics, reason = self._metrics, one.reason
        bypass = None if reason is None else metrics.counter(BYPASSES, one.model, reason.value)
        if endpoint is None:
            count = metrics.counter(REQUESTS, one.model, "other", str(one.status), one.cache)
            return count, bypass, count, count  # such a request is not timed
        name = endpoint.path
        return (
            metrics.counter(REQUESTS, one.model, name, str(one.status), one.cache),
            bypass,
            metrics.histogram(DURATION, name),
            metrics.histogram(ADDED, name, one.cache),
        )

    def _stages(self, one: Counted, started: int, total: int) -> None:
        """Of a request that was no mere look into memory."""
        meter = one.meter
        if meter is not None and meter.first_ns:
            self._metrics.histogram(FIRST_TOKEN, one.model)(max(0, meter.first_ns - started))
            self._stream(max(0, started + total - meter.first_ns))
        if one.upstream_ns:
            self._backend(one.upstream_ns)
        if one.queued_ns > one.wake_ns:
            self._queue(one.queued_ns - one.wake_ns)
        if one.far_ns:
            self._l2(one.far_ns)
        if one.body_ns:
            self._body(one.body_ns)
        if one.cache == _JOINED:
            return  # counted with the request that asked
        tokens = usage_of(one.told) if one.told else None
        if tokens is None and meter is not None:
            tokens = meter.tokens()
        if tokens is not None:
            one.tokens = tokens
            counters = self._tokens.get(one.model)
            if counters is None:
                prompt, completion = (
                    self._metrics.counter(TOKENS, one.model, kind) for kind in ("prompt", "completion")
                )
                counters = self._tokens[one.model] = prompt, completion
            counters[0](tokens[0])
            counters[1](tokens[1])
