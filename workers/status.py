"""What the controller tells of the node: its own metric families, and `/gateway/status`.

Read from the segment at the moment of the question; nothing is remembered here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import msgspec
from prometheus_client.core import Metric

from ..cache.pool_table import PoolPhase
from ..cache.rows import Tally, read_overflowed
from ..cache.segment import Segment
from ..cache.slots import SlotInfo, read_slot
from ..cache.table import UP, BackendState
from ..gateway.config import Published, places_itself
from ..gateway.upstream.origin import Origin
from . import families, store
from .board import HEALTH
from .breaker_view import BreakerView
from .whereabouts import is_there

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROBED = frozenset({0, int(PoolPhase.READY), int(PoolPhase.DRAINING)})
"""States of a backend that is asked how it is; 0: of no pool."""


@cache
def package_version() -> str:
    """Penstock's version, as it was installed when first asked."""
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "unknown"


class Status:
    """`published` gives the current generation, `row` what is known of a backend, by its column, `keys` how the API
    keys are; None where there are none.
    """

    def __init__(
        self,
        segment: Segment,
        published: Callable[[], Published],
        row: Callable[[int], BackendState],
        keys: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._segment = segment
        self._published = published
        self._row = row
        self._keys = keys
        self._tally = Tally(segment)
        self._breakers = BreakerView(segment)
        self._since = time.time()

    def _slots(self) -> Iterator[tuple[str, int, SlotInfo]]:
        """Worker's name, slot, and who is in it, for every slot that is held."""
        slots = self._segment.geometry.slots
        for slot in range(slots + 1):
            info = read_slot(self._segment, slot)
            if info.alive:
                yield ("controller" if slot == slots else str(slot % (slots // 2))), slot, info

    def metrics(self) -> Iterator[Metric]:
        """The controller's own families."""
        published = self._published()
        yield from self._load(published)
        yield from self._processes()
        generation = families.metric(families.CONFIG_GENERATION)
        generation.add_metric([], published.generation)
        yield generation
        info = families.metric(families.BUILD_INFO)
        info.add_metric([package_version()], 1)
        yield info
        if self._keys is not None:
            told = self._keys()
            number = families.metric(families.API_KEYS)
            number.add_metric([], told["keys"])
            readable = families.metric(families.API_KEYS_READABLE)
            readable.add_metric([], told["readable"])
            yield from (number, readable)

    def _load(self, published: Published) -> Iterator[Metric]:
        inflight = families.metric(families.INFLIGHT_REQUESTS)
        up = families.metric(families.BACKEND_UP)
        shut = families.metric(families.BACKEND_BREAKER_OPEN)
        drained = families.metric(families.BACKEND_DRAINED)
        # Two URLs of one model may differ in what their name leaves out: one series, up when all are, open when any is.
        columns: dict[tuple[str, str], list[int]] = {}
        for key, index in published.indices.items():
            model, _, url = key.partition("\n")
            columns.setdefault((model, Origin.parse(url).name), []).append(index)
        for labels, shared in columns.items():
            inflight.add_metric(labels, sum(map(self._tally.inflight, shared)))
            rows = [(index, self._row(index)) for index in shared]
            if any(row.pool_state in _PROBED for _, row in rows):  # one that sleeps is no fault
                up.add_metric(labels, all(row.health == UP for _, row in rows))
            drained.add_metric(labels, all(row.drained for _, row in rows))
            shut.add_metric(
                labels,
                any(self._breakers.phase(at, row.identity) in ("open", "half_open") for at, row in rows),
            )
        running = families.metric(families.RUNNING_REQUESTS)
        queued = families.metric(families.QUEUED_REQUESTS)
        waiting = families.metric(families.WAITING_REQUESTS)
        for model, index in published.model_indices.items():
            running.add_metric([model], self._tally.running(index))
            queued.add_metric([model], self._tally.queued(index))
            if published.config.models[model].pool is not None:
                waiting.add_metric([model], self._tally.waiting(index))
        held = families.metric(families.BUFFERED_BYTES)
        held.add_metric([], self._tally.held_total())
        yield from (inflight, up, shut, drained, running, queued, waiting, held)

    def worker_cpu_s(self) -> dict[int, float]:
        """CPU seconds of the workers' processes by pid."""
        used = ((info.pid, _used(info.pid)) for name, _, info in self._slots() if name != "controller")
        return {pid: told[0] for pid, told in used if told is not None}

    def _processes(self) -> Iterator[Metric]:
        geometry = self._segment.geometry
        workers = geometry.slots // 2
        up = families.metric(families.WORKER_UP)
        starts = families.metric(families.WORKER_STARTS)
        overflow = families.metric(families.METRIC_OVERFLOW)
        alive = {name for name, _, _ in self._slots()}
        for worker in range(workers):
            pair = (worker, worker + workers)
            up.add_metric([str(worker)], str(worker) in alive)
            starts.add_metric([str(worker)], sum(read_slot(self._segment, slot).generation for slot in pair))
            overflow.add_metric([str(worker)], sum(read_overflowed(self._segment, slot) for slot in pair))
        cpu = families.metric(families.PROCESS_CPU_SECONDS)
        memory = families.metric(families.PROCESS_RESIDENT_BYTES)
        files = families.metric(families.PROCESS_OPEN_FDS)
        pids = [("supervisor", self._segment.owner[0])]
        pids += [(n if n == "controller" else f"worker-{n}", info.pid) for n, _, info in self._slots()]
        for process, pid in pids:
            used, open_files = _used(pid), _open_files(pid)
            if used is not None and open_files is not None:
                cpu.add_metric([process, str(pid)], used[0])
                memory.add_metric([process, str(pid)], used[1])
                files.add_metric([process, str(pid)], open_files)
        yield from (up, starts, overflow, cpu, memory, files)

    def status(self, more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        """`/gateway/status` as JSON, with `more` in it."""
        published = self._published()
        tally, now_ns = self._tally, time.monotonic_ns()
        report: dict[str, Any] = {
            "version": package_version(),
            "generation": published.generation,
            "controller_up_s": round(time.time() - self._since, 3),
            "supervisor": {"pid": self._segment.owner[0]},
            "workers": [
                {
                    "worker": name,
                    "slot": slot,
                    "pid": info.pid,
                    "life": info.generation,
                    "heartbeat_age_s": round(max(0, now_ns - info.heartbeat_ns) / 1e9, 3),
                }
                for name, slot, info in self._slots()
                if name != "controller"
            ],
            "models": {
                name: {
                    "running": tally.running(published.model_indices[name]),
                    "queued": tally.queued(published.model_indices[name]),
                    "waiting": tally.waiting(published.model_indices[name]),
                    "max_concurrent": model.max_concurrent,
                    "max_queue": model.max_queue,
                    "backends": [
                        {
                            "url": backend.url,
                            "health": HEALTH[row.health],
                            "drained": bool(row.drained),
                            "breaker": self._breakers.phase(index, row.identity),
                            "inflight": tally.inflight(index),
                            "weight": backend.weight,
                        }
                        for backend in model.backends
                        for index in [published.indices[store.backend_key(name, backend.url)]]
                        for row in [self._row(index)]
                        if is_there(places_itself(model), row.pool_state)
                    ],
                }
                for name, model in published.config.models.items()
            },
        }
        if self._keys is not None:
            report["keys"] = self._keys()
        return msgspec.json.encode(report | dict(more))


def _open_files(pid: int) -> int | None:
    """Open descriptors of a process; None when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _used(pid: int) -> tuple[float, int] | None:
    """CPU seconds and resident bytes of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # fields[0] is field 3 of proc(5): utime and stime are 14 and 15, rss is 24
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE_BYTES
