"""Looks at a running load from beside it: what the gateways count, and whose processor time is used, over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..bench.rig.process import Child
from .counts import Counts, counted
from .stand import Stand, used


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the start, counts so far, processor seconds so far."""

    at_s: float
    counts: Counts
    gateway_cpu_s: float
    generator_cpu_s: float


class Watch:
    """A thread that takes a sample every so often, from `start` to `stop`; one more at each end."""

    def __init__(self, stand: Stand, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._stand = stand
        self._every_s = every_s
        self._generators: Sequence[Child] = ()
        self._spent_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._began = time.monotonic()

    def start(self, generators: Sequence[Child]) -> None:
        """Watch these too."""
        self._generators = generators
        self._began = time.monotonic()
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample, once the counts stand still."""
        self._over.set()
        self._thread.join()
        self._look()
        for _ in range(50):
            before = self.samples[-1].counts.requests
            time.sleep(0.1)
            self._look()
            if self.samples[-1].counts.requests == before:
                del self.samples[-1]
                return

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        # What has ended is not seen any more: the most that was seen stands for it.
        self._spent_s = max(self._spent_s, used(self._generators))
        try:
            counts = counted(self._stand.scrapes())
        except OSError:  # a controller that is being replaced: the next look sees it
            return
        self.samples.append(
            Sample(time.monotonic() - self._began, counts, self._stand.gateway_cpu_s(), self._spent_s)
        )
