"""The questions the bench asks, by the names ``--only`` takes. A new one is a function of a Rig and a line here."""

from __future__ import annotations

from collections.abc import Callable

from ..context import Rig
from . import (
    batching,
    bodies,
    cached,
    governed,
    memory,
    micro,
    pace,
    pooled,
    shared,
    slo,
    throughput,
    unmetered,
)

SCENARIOS: dict[str, Callable[[Rig], None]] = {
    "miss": throughput.miss,
    "stream": throughput.stream,
    "hit": cached.hit,
    "far": cached.far,
    "fill": cached.fill,
    "governed": governed.governed,
    "slo": slo.slo,
    "metrics": unmetered.metrics,
    "batching": batching.batching,
    "pooled": pooled.pooled,
    "one": throughput.one_connection,
    "pace": pace.chunks,
    "first": pace.first,
    "log": throughput.log_cost,
    "slow": memory.slow_streams,
    "idle": memory.idle_clients,
    "deaf": memory.never_reads,
    "bodies": bodies.big_bodies,
    "micro": micro.steps,
    "l1": shared.l1,
}
