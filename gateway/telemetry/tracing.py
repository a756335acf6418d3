"""Which requests are traced, what their upstream calls carry, and what is kept of them until it is exported.

Strategy: no span lives on the loop. What a traced request was is copied once, at its end, and handed to a thread,
which makes spans of it and sends them (:mod:`.spans`). A request that is not traced costs a random number, and where
it is asked upstream a line that says so (W3C Trace Context §3.2.2.5: not sampled).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from ..config.structs import Telemetry
from .outlet import Outlet
from .spans import Export

if TYPE_CHECKING:
    from .told import Attempt, Told

#: Requests that may wait to be exported.
_WAITING = 2_048
_EVERY_S = 0.25
#: Requests at a time: with the pause above, what a worker exports in a second is bounded, whatever comes.
_BATCH = 256

#: Asked by machines, all the time.
_NEVER = frozenset({"/health", "/ready"})


@dataclass(frozen=True, slots=True)
class Trip:
    """What is known of a traced request. Times are perf_counter_ns; ``wall_ns`` added, they are since the epoch.

    ``beginning``: of the answer's bytes. ``tokens``: of prompt and completion, None where they are not known.
    """

    trace_id: str
    span_id: str
    parent_id: str
    state: str
    wall_ns: int
    began_ns: int
    ended_ns: int
    method: str
    path: str
    route: str
    scheme: str
    version: str
    client: str
    status: int
    error: str
    model: str
    values: Mapping[str, str | int | float]
    beginning: bytes
    tokens: tuple[int, int] | None
    attempts: tuple[Attempt, ...]


class Tracing:
    """One worker's. ``instance`` names the process; ``headers``: as `telemetry.headers_env` says."""

    def __init__(self, settings: Telemetry, headers: str, instance: str, random: Random) -> None:
        self.settings = settings
        self._ratio = settings.sample_ratio
        self._random = random
        self._export = Export(settings.otlp_endpoint, headers, instance)
        self.outlet: Outlet[Trip] = Outlet(
            "otlp", self._export.deliver, most=_WAITING, every_s=_EVERY_S, batch=_BATCH
        )

    def begin(self, told: Told, path: str) -> None:
        """Decide whether a request is traced."""
        parent = told.parent
        sampled = self._random.random() < self._ratio if parent is None else parent.sampled
        if sampled and path not in _NEVER:
            told.span_id = self._id(64)
            if parent is None:
                told.trace_id = self._id(128)

    def lines(self, told: Told, attempt: Attempt) -> str:
        """The header lines of one upstream call; none where those that came are passed on."""
        if told.span_id:
            attempt.span_id = self._id(64)
            state = f"tracestate: {told.trace_state}\r\n" if told.trace_state else ""
            return f"traceparent: 00-{told.trace_id}-{attempt.span_id}-01\r\n{state}"
        if told.parent is not None:
            return ""
        told.trace_id = told.trace_id or self._id(128)
        return f"traceparent: 00-{told.trace_id}-{self._id(64)}-00\r\n"

    def put(self, trip: Trip) -> None:
        """To be exported soon; never waits."""
        self.outlet.offer(trip, 1, 1 + len(trip.attempts))

    def _id(self, bits: int) -> str:
        return f"{self._random.getrandbits(bits) or 1:0{bits // 4}x}"
