"""Times the garbage collector: what it takes, every request of the worker waits for."""

from __future__ import annotations

import gc
from time import perf_counter_ns
from typing import Any

from .metrics import GC_PAUSES, Metrics


class GcWatch:
    """``start`` and ``stop`` stand around a worker's life; one process has one collector."""

    __slots__ = ("_began", "_observe")

    def __init__(self, metrics: Metrics) -> None:
        self._began = 0
        # made here: no cell is looked for while the collector runs
        self._observe = [metrics.histogram(GC_PAUSES, str(generation)) for generation in range(3)]

    def start(self) -> None:
        """From now on."""
        gc.callbacks.append(self._told)

    def stop(self) -> None:
        """No more; idempotent."""
        if self._told in gc.callbacks:
            gc.callbacks.remove(self._told)

    def _told(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = perf_counter_ns()
        elif self._began:
            self._observe[info["generation"]](perf_counter_ns() - self._began)
            self._began = 0
