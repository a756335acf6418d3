"""The doors of several workers in one process: one segment, and a clock and timers that move when told to."""

import asyncio
import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from penstock.cache.layout import Geometry
from penstock.cache.rows import SHARE_QUEUED, SHARE_RUNNING, Tally, TallyRow
from penstock.cache.segment import Segment, process_start
from penstock.gateway.admission import POLL_S, Admission
from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.errors import Fault

SHARES = 64


@dataclass
class Bounds:
    """A model as admission sees it."""

    index: int = 0
    name: str = "m"
    places: int = 4
    max_queue: int = 5
    queue_timeout_s: float = 60.0


class Loop(asyncio.SelectorEventLoop):
    """A loop whose timers run when `Node` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, args, self, context)
        heapq.heappush(self.timers, (self.now + delay, next(self._numbers), handle))
        return handle

    def settle(self) -> None:
        """Let everything run that can."""
        while self._ready:  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()


class Node:
    """Workers' doors; `keys`: how many cells there are for shares."""

    def __init__(self, workers: int = 2, keys: int = SHARES) -> None:
        start = process_start(os.getpid())
        assert start is not None
        self.loop = Loop()
        self.keys = keys
        self.segment = Segment.create(
            None,
            Geometry(slots=workers, backends=2, models=2, counter_bytes=8192, keys=keys),
            owner_pid=os.getpid(),
            owner_start=start,
        )
        self.tally = Tally(self.segment)
        self.rows = [TallyRow(self.segment, slot) for slot in range(workers)]
        self.doors = [self._door(row) for row in self.rows]

    def _door(self, row: TallyRow) -> Admission:
        return Admission(row, self.tally, loop=self.loop, clock=lambda: self.loop.now, keys=self.keys)

    def settle(self) -> None:
        """Let everything run that can."""
        self.loop.settle()

    def jump(self, seconds: float) -> None:
        """Time passes at once: whatever was due meanwhile runs late, and the workers tick."""
        loop = self.loop
        loop.now += seconds
        due = [heapq.heappop(loop.timers) for _ in range(sum(t[0] <= loop.now for t in loop.timers))]
        for _, _, handle in due:
            if not handle.cancelled():
                handle._run()
        for door in self.doors:
            door.tick(loop.now)
        self.settle()

    def run(self, seconds: float) -> None:
        """Time passes, and everything runs when it is due; the workers tick at the end."""
        loop = self.loop
        end = loop.now + seconds
        while loop.timers and loop.timers[0][0] <= end:
            loop.now, _, handle = heapq.heappop(loop.timers)
            if not handle.cancelled():
                handle._run()
                self.settle()
        loop.now = end
        for door in self.doors:
            door.tick(end)
        self.settle()

    def poll(self) -> None:
        """As much time as workers need to find a place that was left to another."""
        for _ in range(3):
            self.run(POLL_S * 1.01)

    def counts(self) -> dict[str, int]:
        """Everything that is counted while requests run or wait."""
        shares = range(self.keys)
        return {
            "running": sum(self.tally.running(model) for model in range(2)),
            "queued": sum(self.tally.queued(model) for model in range(2)),
            "wishes": sum(map(bool, self.tally.wishes(0) + self.tally.wishes(1))),
            "shares running": sum(self.tally.of_key(SHARE_RUNNING, at) for at in shares),
            "shares queued": sum(self.tally.of_key(SHARE_QUEUED, at) for at in shares),
            "waiting": sum(door.waiting for door in self.doors),
        }

    def close(self) -> None:
        self.loop.close()
        for row in (*self.rows, self.tally):
            for name in row.__slots__:
                delattr(row, name)
        self.segment.close()


class Request:
    """One that asks to enter: `entered`, still waiting, refused with a fault, or given up."""

    def __init__(self, node: Node, worker: int, model: Bounds, caller: Caller = ANYONE) -> None:
        self.worker = worker
        self.model = model
        self.caller = caller
        self.door = node.doors[worker]
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self.inside = self.door.try_enter(model, caller)
        if not self.inside:
            self.task = node.loop.create_task(self.door.wait(model, caller))
            node.settle()

    @property
    def entered(self) -> bool:
        return self.inside or (
            self.task is not None
            and self.task.done()
            and not self.task.cancelled()
            and self.task.exception() is None
        )

    @property
    def fault(self) -> Fault | None:
        if self.task is None or not self.task.done() or self.task.cancelled():
            return None
        error = self.task.exception()
        assert error is None or isinstance(error, Fault)
        return error

    @property
    def waiting(self) -> bool:
        return self.task is not None and not self.task.done()

    def leave(self) -> None:
        """Whoever is inside leaves, whoever waits is cancelled."""
        if self.entered and not self.left:
            self.left = True
            self.door.leave(self.model, self.caller)
        elif self.waiting:
            assert self.task is not None
            self.task.cancel()


def finish(node: Node, requests: list[Request]) -> None:
    """Everyone leaves; every count must be zero then."""
    for request in requests:
        if request.waiting:
            request.leave()
    node.settle()
    for request in requests:
        request.leave()
    node.settle()
    assert not any(node.counts().values()), node.counts()
    node.jump(1.0)
    assert node.loop.timers == [], "nobody waits, nobody polls"
