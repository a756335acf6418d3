"""Looks every few seconds at what the workers have done, and says whether there should be more gateways.

Strategy: the counters of the segment are read, and the CPU time of the workers' processes, and compared with those of
a minute ago. What :mod:`penstock.workers.autoscale` decides is shown at `/metrics`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from ..cache.segment import Segment
from ..gateway.metrics import ADDED, REQUESTS
from . import families
from .autoscale import SIGNAL, Scale, Seen, quantile, step
from .scrape import samples

EVERY_S = 5.0
_LOOKS = 13
"""In a minute, its two ends included."""


@dataclass(frozen=True, slots=True)
class Look:
    """At one moment (s): requests so far, the histogram of what was added, CPU seconds by pid."""

    at_s: float
    requests: int
    added: tuple[int, ...]
    cpu_s: Mapping[int, float]


class LoadWatch:
    """``cpu_s`` gives the CPU seconds of the workers by pid, ``workers`` is how many there are to be."""

    def __init__(
        self,
        segment: Segment,
        workers: int,
        cpu_s: Callable[[], Mapping[int, float]],
        clock: Callable[[], float],
    ) -> None:
        self._segment = segment
        self._workers = workers
        self._cpu_s = cpu_s
        self._clock = clock
        self._looks: deque[Look] = deque(maxlen=_LOOKS)
        self._seen = Seen(0.0, 0.0, 0.0)
        self._scale = Scale(clock())

    async def run(self) -> None:
        """For as long as the controller."""
        while True:
            self.look()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        """Once."""
        requests, added = 0, [0] * (len(ADDED.buckets_s) + 1)
        for _, family, _, cells in samples(self._segment):
            if family is REQUESTS:
                requests += cells[0]
            elif family is ADDED:
                for at in range(len(added)):
                    added[at] += cells[at]
        now = Look(self._clock(), requests, tuple(added), dict(self._cpu_s()))
        self._looks.append(now)
        if now.at_s > self._looks[0].at_s:
            self._seen = between(self._looks[0], now, self._workers)
            self._scale = step(self._scale, self._seen, now.at_s)

    def metrics(self) -> Iterator[Metric]:
        """For the controller's scrape."""
        direction = self._scale.direction
        yield families.metric(families.AUTOSCALE_DIRECTION, float(direction))
        yield families.metric(families.AUTOSCALE_SIGNAL, SIGNAL[direction])
        yield families.metric(families.AUTOSCALE_CPU, self._seen.cpu)
        yield families.metric(families.AUTOSCALE_RPS, self._seen.rps)
        yield families.metric(families.AUTOSCALE_P95, self._seen.p95_s)


def between(then: Look, now: Look, workers: int) -> Seen:
    """What was seen between two looks. A process that was not there then has done all of its work since."""
    passed_s = now.at_s - then.at_s
    cpu_s = sum(used - then.cpu_s.get(pid, 0.0) for pid, used in now.cpu_s.items())
    added = [after - before for after, before in zip(now.added, then.added, strict=True)]
    return Seen(
        cpu=max(0.0, cpu_s) / passed_s / workers,
        rps=(now.requests - then.requests) / passed_s,
        p95_s=quantile(0.95, ADDED.buckets_s, added),
    )
