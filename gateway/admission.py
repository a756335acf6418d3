"""Who may go upstream now, who waits, who is refused: per model, over all workers of the node.

Reserve first: a worker counts itself in, then sums; over the limit it takes that back and queues. With W workers
that admits at most W-1 over the limit and never refuses below the limit minus W. Each worker queues its own
arrivals in order; a place freed here is handed on at once, a place freed by another worker is found by the tick.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from .errors import Fault, Kind

log = logging.getLogger(__name__)


class OwnRow(Protocol):
    """The cells of this worker (:class:`penstock.cache.rows.TallyRow`)."""

    def add_running(self, model: int, n: int) -> None: ...

    def add_queued(self, model: int, n: int) -> None: ...


class Sums(Protocol):
    """Sums over all workers (:class:`penstock.cache.rows.Tally`)."""

    def running(self, model: int) -> int: ...

    def queued(self, model: int) -> int: ...


class Bounds(Protocol):
    """What admission needs to know of a model."""

    @property
    def index(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def max_concurrent(self) -> int: ...

    @property
    def max_queue(self) -> int: ...

    @property
    def queue_timeout_s(self) -> float: ...


class Queued(Protocol):
    """Who waits, and for how long."""

    queued_ns: int


class _Waiter:
    __slots__ = ("deadline", "future", "model")

    def __init__(self, future: asyncio.Future[None], deadline: float, model: Bounds) -> None:
        self.future = future
        self.deadline = deadline
        self.model = model


class Admission:
    """One worker's door: ``try_enter`` for the fast path, ``wait`` for the queue, ``leave`` on every way out."""

    __slots__ = ("_clock", "_loop", "_queues", "_row", "_sums")

    def __init__(
        self, row: OwnRow, sums: Sums, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self._row = row
        self._sums = sums
        self._loop = loop
        self._clock = clock
        self._queues: dict[int, deque[_Waiter]] = {}

    def try_enter(self, model: Bounds) -> bool:
        """Take a place if one is free and nobody of this worker waits before."""
        if self._queues and self._queues.get(model.index):
            return False
        return self._reserve(model)

    def _reserve(self, model: Bounds) -> bool:
        self._row.add_running(model.index, 1)
        if self._sums.running(model.index) > model.max_concurrent:
            self._row.add_running(model.index, -1)
            return False
        return True

    async def queue(self, model: Bounds, life: Queued) -> None:
        """As :meth:`wait`; says so in the log when it was in vain, and to ``life`` how long it took."""
        started = perf_counter_ns()
        try:
            await self.wait(model)
        except Fault as fault:
            log.info("%s model=%s", fault.kind.value, model.name)
            raise
        finally:
            life.queued_ns += perf_counter_ns() - started

    async def wait(self, model: Bounds) -> None:
        """Queue until a place is taken; raises :class:`Fault` 429 when the queue is full, 504 after the timeout."""
        self._row.add_queued(model.index, 1)
        depth = self._sums.queued(model.index)
        if depth > model.max_queue:
            self._row.add_queued(model.index, -1)
            raise Fault(
                Kind.QUEUE_FULL,
                f"the queue of '{model.name}' is full ({depth - 1} waiting)",
                retry_after_s=1.0,
                headers=(("x-queue-depth", str(depth - 1)),),
            )
        waiter = _Waiter(self._loop.create_future(), self._clock() + model.queue_timeout_s, model)
        queue = self._queues.setdefault(model.index, deque())
        queue.append(waiter)
        try:
            await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.leave(model)  # the place was handed over in the very tick that cancelled the wait
            elif waiter in queue:
                queue.remove(waiter)
            raise
        finally:
            self._row.add_queued(model.index, -1)
            if not queue and self._queues.get(model.index) is queue:
                del self._queues[model.index]

    def leave(self, model: Bounds) -> None:
        """Give a place back and hand it to the next waiter."""
        self._row.add_running(model.index, -1)
        if self._queues:
            self._advance(model.index)

    def _advance(self, index: int) -> None:
        queue = self._queues.get(index)
        while queue:
            waiter = queue[0]
            if waiter.future.done():
                queue.popleft()
            elif self._reserve(waiter.model):
                queue.popleft()
                waiter.future.set_result(None)
            else:
                return

    def tick(self, now: float) -> None:
        """Find places that other workers freed, and end the waits that took too long."""
        for index, queue in list(self._queues.items()):
            self._advance(index)
            while queue and (queue[0].future.done() or queue[0].deadline <= now):
                waiter = queue.popleft()
                if not waiter.future.done():
                    seconds = waiter.model.queue_timeout_s
                    waiter.future.set_exception(
                        Fault(
                            Kind.QUEUE_TIMEOUT,
                            f"no place at '{waiter.model.name}' within queue_timeout_s ({seconds:g} s)",
                            retry_after_s=1.0,
                        )
                    )

    @property
    def waiting(self) -> int:
        """Requests of this worker that wait now."""
        return sum(len(queue) for queue in self._queues.values())
