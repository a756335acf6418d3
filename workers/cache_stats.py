"""What the cache has and did, read at the moment of the question: for `/gateway/cache/stats` and `/metrics`.

Sizes come from the arena, counts from the workers' rows: they belong to the worker, whichever process it was, and
never fall while the gateway runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import Metric

from ..cache.arena import ROW_CELLS, Arena
from ..cache.l1 import L1
from ..cache.layout import CELL_BYTES
from ..cache.log import OWNER
from ..cache.outcome import Outcome
from ..cache.segment import Segment
from ..gateway.config import Published
from ..gateway.metrics import BYPASSES, FLIGHTS, REQUESTS, STORES
from . import families
from .invalidation import Invalidation
from .scrape import samples


class CacheStats:
    """Needs no loop. published: the current generation."""

    __slots__ = ("_arena", "_invalidation", "_l1", "_published", "_segment")

    def __init__(
        self, segment: Segment, arena: Arena, invalidation: Invalidation, published: Callable[[], Published]
    ) -> None:
        self._segment = segment
        self._arena = arena
        self._invalidation = invalidation
        self._published = published
        self._l1 = L1(arena, None, lambda slot, generation: False)

    def report(self) -> dict[str, Any]:
        """All of it, as builtins. Sizes in bytes; counts since the gateway began."""
        requests = {outcome.value: 0 for outcome in Outcome}
        bypasses: dict[str, int] = {}
        flights: dict[str, int] = {}
        workers: dict[str, dict[str, dict[str, int]]] = {
            str(index): {} for index in range(self._segment.geometry.slots // 2)
        }
        for row, family, labels, (value, *_) in samples(self._segment):
            if family is REQUESTS and labels[-1] in requests:
                requests[labels[-1]] += value
            elif family is BYPASSES:
                _add(bypasses, labels[-1], value)
            elif family is FLIGHTS:
                _add(flights, labels[-1], value)
            elif family is STORES and row < self._segment.geometry.controller:
                layer, event = labels
                _add(workers[str(row % len(workers))].setdefault(layer, {}), event, value)
        total: dict[str, dict[str, int]] = {}
        for counts in workers.values():
            for layer, events in counts.items():
                for event, value in events.items():
                    _add(total.setdefault(layer, {}), event, value)
        return {
            "mode": self._published().config.cache.mode,
            "l1": self._l1_report(),
            "l2": self._l2_report(),
            "epochs_set": len(self._arena.epochs.names_set()),
            "requests": requests,
            "bypasses": bypasses,
            "flights": flights,
            "events": total,
            "workers": workers,
        }

    def metrics(self) -> Iterator[Metric]:
        """The families that no worker counts."""
        size = families.metric(families.CACHE_L1_SIZE_BYTES)
        size.add_metric([], self._l1.capacity_bytes)
        used = families.metric(families.CACHE_L1_USED_BYTES)
        used.add_metric([], self._l1.used_bytes())
        yield from (size, used)
        if self._invalidation.topology is not None:
            synced = families.metric(families.CACHE_L2_SYNCED)
            synced.add_metric([], int(self._arena.epochs.synced))
            yield synced

    def _l2_report(self) -> dict[str, Any] | None:
        topology = self._invalidation.topology
        if topology is None:
            return None
        untold = self._invalidation.untold
        return {"topology": topology, "synced": self._arena.epochs.synced, "flushes_untold": untold}

    def _l1_report(self) -> dict[str, int] | None:
        geometry = self._arena.geometry
        if not geometry.segments:
            return None
        first = geometry.rows_at // CELL_BYTES + OWNER
        owners = self._arena.cells[first : first + geometry.segments * ROW_CELLS : ROW_CELLS].tolist()
        return {
            "file_bytes": geometry.total_bytes,
            "size_bytes": self._l1.capacity_bytes,
            "used_bytes": self._l1.used_bytes(),
            "segments": geometry.segments,
            "segments_open": sum(map(bool, owners)),
            "segment_bytes": geometry.segment_bytes,
            "max_entry_bytes": geometry.max_entry_bytes,
        }


def _add(counts: dict[str, int], name: str, n: int) -> None:
    counts[name] = counts.get(name, 0) + n
