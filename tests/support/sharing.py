"""Nodes that share pools through a real store, in one process: what a runner tells and asks, played by the test."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.lease import LeaseStore
from penstock.workers.pools.nodes import Timing
from penstock.workers.pools.providers.base import Order
from penstock.workers.pools.shared import Shared
from penstock.workers.pools.words import Load, MemberPhase, Others

TIMING = Timing(beat_s=0.1, lease_s=1.8, silent_s=1.2)
POOL = "org/model:1"


@dataclass
class SharingNode:
    """One node; `phase`, `members` and `load` are what it tells of the pool."""

    shared: Shared
    phase: PoolPhase = PoolPhase.READY
    members: list[MemberPhase] = field(default_factory=lambda: [MemberPhase.READY])
    load: Load = field(default_factory=lambda: Load(inflight=(0,)))
    task: asyncio.Task[None] | None = None

    def tick(self) -> None:
        self.shared.tell(POOL, self.load, self.phase, self.members, time.monotonic())
        self.shared.others(POOL)

    @property
    def others(self) -> Others:
        return self.shared.others(POOL)

    def becomes(self, phase: PoolPhase, *members: MemberPhase) -> None:
        self.phase = phase
        self.members = list(members) or [MemberPhase(phase)]

    def has(self, running: int = 0, waiting: int = 0) -> None:
        finished = time.monotonic() if self.load.running > running else self.load.finished_s
        self.load = Load(waiting, None, 0, running, (running,), finished)

    def order(self, verb: str, member: int = 0) -> Order:
        return self.shared.order(POOL, verb, member)  # type: ignore[arg-type]

    async def confirm(self, order: Order) -> bool:
        return await self.shared.confirm(POOL, order)

    def metric(self, name: str) -> float:
        return next(s.value for m in self.shared.metrics() for s in m.samples if s.name == name)

    def speak(self) -> None:
        self.task = asyncio.ensure_future(self.shared.run())

    async def pause(self) -> None:
        """As by SIGSTOP: it says and hears nothing."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])
        self.task = None


class Nodes:
    """Several of them, and the means to let time pass."""

    def __init__(self, make: Callable[[], LeaseStore], timing: Timing = TIMING) -> None:
        self.all: list[SharingNode] = []
        self._make = make
        self._timing = timing

    def join(self, name: str) -> SharingNode:
        shared = Shared(
            self._make(),
            name,
            f"{name}.{os.urandom(4).hex()}",
            clock=time.monotonic,
            random=os.urandom,
            timing=self._timing,
        )
        shared.keep([POOL])
        node = SharingNode(shared)
        node.speak()
        self.all.append(node)
        return node

    async def until(self, true: Callable[[], object], what: str = "") -> None:
        """Tick all nodes that run until it is so; the test's watchdog bounds it."""
        for _ in range(2000):
            for node in self.all:
                if node.task is not None:
                    node.tick()
            if true():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never: {what}")

    async def owner(self, among: Sequence[SharingNode] | None = None) -> SharingNode:
        """The one that owns the pool and has listened long enough to know all others."""
        found: list[SharingNode] = []

        def one() -> bool:
            found[:] = [node for node in among or self.all if node.task and node.others.may_stop]
            return len(found) == 1

        await self.until(one, "one owner")
        return found[0]

    async def confirmed(self, node: SharingNode, member: int = 0) -> Order:
        """A stop that is agreed to; a word that was late on a busy machine is waited for."""
        for _ in range(20):
            order = node.order("stop", member)
            if await node.confirm(order):
                return order
            await self.until(lambda: node.others.drained, "all are through with it")
        raise AssertionError("never agreed")

    async def idle(self, node: SharingNode) -> None:
        await self.until(lambda: not node.others.busy, "nobody else is busy")

    def other(self, node: SharingNode) -> SharingNode:
        return next(one for one in self.all if one is not node)


@asynccontextmanager
async def sharing(
    make: Callable[[], LeaseStore], *names: str, timing: Timing = TIMING
) -> AsyncIterator[Nodes]:
    """Nodes with these names; all are closed in the end."""
    nodes = Nodes(make, timing)
    for name in names:
        nodes.join(name)
    try:
        yield nodes
    finally:
        for node in nodes.all:
            if node.task is not None:
                await node.pause()
            await node.shared.close()
