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
    meter: StreamMeter | None


class Ledger:
    """One worker's."""

    __slots__ = ("_backend", "_body", "_l2", "_metrics", "_observers", "_queue", "_stream", "_tokens")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._observers: dict[tuple[Endpoint, str], tuple[Observe, Observe]] = {}
        self._tokens: dict[str, tuple[Observe, Observe]] = {}
        self._body, self._l2, self._queue, self._backend, self._stream = (
            metrics.histogram(STAGES, stage) for stage in ("body", "l2", "queue", "backend", "stream")
        )

    def record(self, one: Counted, endpoint: Endpoint | None, started: int, total: int) -> None:
        """One request has ended. ``started`` (perf_counter_ns): its body was there; 0: it never was. ``total``: since
        then (ns).
        """
        metrics = self._metrics
        name = endpoint.path if endpoint is not None else "other"
        metrics.request(one.model, name, one.status, one.cache)
        if one.reason is not None:
            metrics.count(BYPASSES, one.model, one.reason.value)
        if endpoint is None or not started:
            return
        observers = self._observers.get((endpoint, one.cache))
        if observers is None:
            observers = metrics.histogram(DURATION, name), metrics.histogram(ADDED, name, one.cache)
            self._observers[(endpoint, one.cache)] = observers
        observers[0](total)
        waited = one.upstream_ns + one.queued_ns
        if one.first_ns:
            added = one.first_ns - started - waited
            observers[1](added if added > 0 else 0)
        if waited or one.far_ns or one.body_ns:
            self._stages(one, started, total)

    def failed(self, model: str, fault: Fault) -> None:
        """The gateway says itself that a request failed."""
        self._metrics.count(ERRORS, model, fault.kind.value)

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
        if meter is not None:
            tokens: tuple[int, int] | None = meter.tokens()
        else:
            tokens = usage_of(one.told) if one.told else None
        if tokens is not None:
            counters = self._tokens.get(one.model)
            if counters is None:
                prompt, completion = (
                    self._metrics.counter(TOKENS, one.model, kind) for kind in ("prompt", "completion")
                )
                counters = self._tokens[one.model] = prompt, completion
            counters[0](tokens[0])
            counters[1](tokens[1])
