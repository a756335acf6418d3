"""Names, labels and buckets of what a worker measures, and the cells it counts in.

The hot path adds to 8-byte cells of the worker's own counter row; the controller finds them by their names and
renders them (:class:`Family` says how). A series' name in a row is msgpack ``[family, [label values…]]``.
Histogram cells: one per bucket, not cumulative, the last for +Inf, then the sum in nanoseconds.
Imported by nothing below the pipeline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

#: Seconds; from 0.25 ms, with the edges of the service level objectives (0.5, 1.5, 2, 3, 4, 5, 8 ms).
LATENCY_BUCKETS_S = (
    *(0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.008, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
#: Seconds, up to the longest that a start of a server may take.
WAKE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)
PAUSE_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)  # by identity: hashing every field took 1 µs a count
class Family:
    """One Prometheus family. ``scale`` turns a cell into the exported unit; ``worker`` adds a worker label."""

    name: str
    help: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()
    scale: float = 1.0
    worker: bool = False


REQUESTS = Family(
    "penstock_requests_total",
    "Requests by their true status: a failure inside a stream counts as that failure, not as 200.",
    "counter",
    ("model", "endpoint", "status", "cache"),
)
BYPASSES = Family(
    "penstock_cache_bypasses_total",
    "Requests that the cache had nothing to do with, by the reason.",
    "counter",
    ("model", "reason"),
)
FLIGHTS = Family(
    "penstock_flights_total",
    "Upstream calls for cacheable requests (led), requests that followed one, and leaders that were lost meanwhile.",
    "counter",
    ("role",),
)
STORES = Family(
    "penstock_cache_events_total", "What became of entries, by layer.", "counter", ("layer", "event")
)
ADDED = Family(
    "penstock_added_latency_seconds",
    "Time the gateway itself added from when a request's body was there to the first byte of its answer: total minus "
    "waiting for the backend, for a place and for servers to wake. What waits before that, for a worker that is busy, "
    "shows in penstock_loop_lag_seconds.",
    "histogram",
    ("endpoint", "cache"),
    LATENCY_BUCKETS_S,
)
DURATION = Family(
    "penstock_request_duration_seconds",
    "Time from when a request's body was there to the answer's last byte, as the gateway sees it.",
    "histogram",
    ("endpoint",),
    LATENCY_BUCKETS_S,
)
STAGES = Family(
    "penstock_stage_seconds",
    "Where requests spent their time, of those that went through it: body (a long or chunked one came), l2 (Redis was "
    "asked), queue (no place was free), backend (until its answer began), stream (from its first bytes to its last).",
    "histogram",
    ("stage",),
    LATENCY_BUCKETS_S,
)
FIRST_TOKEN = Family(
    "penstock_time_to_first_token_seconds",
    "From a request's body to the first bytes of its stream, queue and wake included. "
    "What the cache gives is not in it.",
    "histogram",
    ("model",),
    LATENCY_BUCKETS_S,
)
INTER_TOKEN = Family(
    "penstock_inter_token_latency_seconds",
    "Time between two pieces of a stream as they were passed on; vLLM sends one for each token.",
    "histogram",
    ("model",),
    LATENCY_BUCKETS_S,
)
TOKENS = Family(
    "penstock_tokens_total",
    "Tokens of backends' answers by kind, prompt or completion, as their usage says; of a stream that says nothing of "
    "it, its events as completion. What the cache gives costs none.",
    "counter",
    ("model", "kind"),
)
ERRORS = Family(
    "penstock_errors_total",
    "Requests that the gateway itself answered with an error, or ended with one, by its code.",
    "counter",
    ("model", "code"),
)
CONNECTS = Family(
    "penstock_upstream_connect_seconds",
    "How long it took to open connections to backends, those that could be opened.",
    "histogram",
    (),
    LATENCY_BUCKETS_S,
)
RETRIES = Family(
    "penstock_upstream_retries_total",
    "Upstream attempts after the first, by their cause.",
    "counter",
    ("model", "cause"),
)
FALLBACKS = Family(
    "penstock_fallbacks_total",
    "Requests that went on to another model, by the reason.",
    "counter",
    ("model", "to", "cause"),
)
BATCHES = Family(
    "penstock_batches_total",
    "Requests that went upstream for several callers at once, by what came of it: answered; refused (all were told "
    "so); resent (each alone, after an error); unsplit (each alone: the answer could not be taken apart); failed; "
    "left (nobody waited any more).",
    "counter",
    ("model", "outcome"),
)
BATCHED = Family(
    "penstock_batched_requests_total", "Callers' requests that went upstream in those.", "counter", ("model",)
)
WAITS = Family(
    "penstock_pool_waits_total",
    "Times that a request waited for its model's servers to wake, by what came of it: released (it went on), failed "
    "(the wake did), timeout, refused (the queue was full), left (nobody waited any more).",
    "counter",
    ("model", "outcome"),
)
WAITED = Family(
    "penstock_pool_wait_seconds",
    "How long requests waited for their model's servers to wake, whatever came of it.",
    "histogram",
    ("model",),
    WAKE_BUCKETS_S,
)
UPSTREAM_FAULTS = Family(
    "penstock_upstream_faults_total", "Faults of backends by kind.", "counter", ("model", "backend", "kind")
)
LIMITED = Family(
    "penstock_limited_total",
    "Requests refused because their key was over a limit, by the limit: requests, tokens or concurrent.",
    "counter",
    ("limit",),
)
ACCESS_LOST = Family(
    "penstock_access_log_lost_total",
    "Lines of the access log that could not be written, or not as fast as requests came.",
    "counter",
)
SPANS_LOST = Family(
    "penstock_spans_lost_total",
    "Spans that the collector did not take, or not as fast as requests came.",
    "counter",
)
PAUSES = Family(
    "penstock_stream_pauses_total",
    "Times an upstream was paused because its client read too slowly.",
    "counter",
)
LAG = Family(
    "penstock_loop_lag_seconds",
    "How late the worker's 20 ms tick ran: what one step on the loop delays everything else.",
    "histogram",
    (),
    LAG_BUCKETS_S,
    worker=True,
)
LAG_MAX = Family(
    "penstock_loop_lag_max_seconds",
    "The greatest loop lag of the last 10 s.",
    "gauge",
    scale=1 / _NS,
    worker=True,
)
TASKS = Family(
    "penstock_tasks",
    "What a worker's loop has to do: its asyncio tasks, every 10 s, or each second while it answers nothing.",
    "gauge",
    worker=True,
)
GC_PAUSES = Family(
    "penstock_gc_pause_seconds",
    "How long the garbage collector held a worker, by the generation it went through.",
    "histogram",
    ("generation",),
    PAUSE_BUCKETS_S,
    worker=True,
)
INFLIGHT = Family(
    "penstock_worker_inflight_requests",
    "Requests that a worker is answering, every second.",
    "gauge",
    worker=True,
)
CLIENTS = Family(
    "penstock_client_connections",
    "Open connections of clients over TCP, as a worker last counted them.",
    "gauge",
    worker=True,
)
L2_UP = Family("penstock_cache_l2_up", "1 while a worker asks Redis for answers.", "gauge", worker=True)
CONNECTIONS = Family(
    "penstock_upstream_connections", "Upstream connections.", "gauge", ("backend", "state"), worker=True
)

#: Every family that a worker's row may hold, by name.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(
            REQUESTS,
            BYPASSES,
            FLIGHTS,
            STORES,
            ADDED,
            DURATION,
            STAGES,
            FIRST_TOKEN,
            INTER_TOKEN,
            TOKENS,
            ERRORS,
            CONNECTS,
            RETRIES,
            FALLBACKS,
            BATCHES,
            BATCHED,
            WAITS,
            WAITED,
            UPSTREAM_FAULTS,
            PAUSES,
            LIMITED,
            ACCESS_LOST,
            SPANS_LOST,
        ),
        *(LAG, LAG_MAX, GC_PAUSES, TASKS, INFLIGHT, CLIENTS, CONNECTIONS, L2_UP),
    )
}


#: Takes one duration in nanoseconds.
Observe = Callable[[int], None]


class Row(Protocol):
    """The counter row of this worker (:class:`penstock.cache.rows.CounterRow`)."""

    cells: memoryview

    def cell(self, key: bytes, width: int = 1) -> int: ...


def series(family: Family, *labels: str) -> bytes:
    """The name of one series in a row."""
    return msgspec.msgpack.encode([family.name, labels])


class Metrics:
    """What one worker counts; every method is a dictionary look-up and a few stores."""

    __slots__ = ("_cells", "_histograms", "_known", "_row")

    def __init__(self, row: Row) -> None:
        self._row = row
        self._cells = row.cells
        self._known: dict[tuple[object, ...], int] = {}
        self._histograms: dict[tuple[object, ...], Observe] = {}

    def count(self, family: Family, *labels: str, n: int = 1) -> None:
        """Adds ``n`` to a counter."""
        at = self._known.get((family, *labels))
        if at is None:
            at = self._known[(family, *labels)] = self._row.cell(series(family, *labels))
        self._cells[at] += n

    def counter(self, family: Family, *labels: str) -> Callable[[int], None]:
        """A function that adds to one counter, for who cannot spare a look-up."""
        at = self._row.cell(series(family, *labels))
        cells = self._cells

        def add(n: int) -> None:
            cells[at] += n

        return add

    def gauge(self, family: Family, *labels: str, value: int) -> None:
        """Stores a gauge's value (in the unit that ``family.scale`` turns into the exported one)."""
        at = self._known.get((family, *labels))
        if at is None:
            at = self._known[(family, *labels)] = self._row.cell(series(family, *labels))
        self._cells[at] = value

    def histogram(self, family: Family, *labels: str) -> Observe:
        """A function that observes nanoseconds in one series."""
        observe = self._histograms.get((family, *labels))
        if observe is None:
            observe = self._histograms[(family, *labels)] = self._observer(family, *labels)
        return observe

    def _observer(self, family: Family, *labels: str) -> Observe:
        bounds = [int(bound * _NS) for bound in family.buckets_s]
        at = self._row.cell(series(family, *labels), len(bounds) + 2)
        total = at + len(bounds) + 1
        cells = self._cells

        def observe(ns: int) -> None:
            cells[at + bisect_left(bounds, ns)] += 1
            cells[total] += ns

        return observe
