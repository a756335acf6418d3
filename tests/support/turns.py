"""A node with GPUs, model servers and requests, on a clock that is moved: real machines, the real house, nothing else.

What it refuses to be: threads, tasks, or the passing of time. What the world is never to do is checked as it goes: more
memory promised or taken than there is, a stop while something is in flight, an eviction of a pool with work whose turn
is not over.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from penstock.cache.pool_table import PoolPhase
from penstock.gateway.config.pool import ProcessPool
from penstock.workers.pools.footprints import Footprint
from penstock.workers.pools.house import House
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.viewing import view_of
from penstock.workers.pools.views import Device, Evict, Grant, Refuse, View
from penstock.workers.pools.words import (
    Effect,
    Event,
    Load,
    MemberPhase,
    Room,
    Sleep,
    Slept,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
    Tick,
    Wake,
    Woke,
)
from penstock.workers.pools.words import Evict as EvictEvent

GIB = 1 << 30
_ON_GPU = (MemberPhase.STARTING, MemberPhase.READY, MemberPhase.DRAINING, MemberPhase.STOPPING)


@dataclass
class Request:
    """One request. began, ended: when it was let through, and answered; failed: its wake did."""

    pool: str
    arrived: float
    service_s: float
    began: float | None = None
    ended: float | None = None
    failed: bool = False


@dataclass
class Model:
    """One model's pool and what its servers are like: bytes really taken, seconds really needed."""

    name: str
    pool: ProcessPool
    takes: int
    start_s: float = 10.0
    stop_s: float = 2.0
    wake_s: float = 1.0
    knows: Footprint = field(default_factory=Footprint)
    places: int = 100
    fails: int = 0

    def __post_init__(self) -> None:
        self.machine = Machine(Terms.of(self.pool, self.places, False), 0.0)
        self.held: deque[Request] = deque()
        self.queue: deque[Request] = deque()
        self.running: list[tuple[float, int, Request]] = []
        self.finished = 0.0
        self.gpus: dict[int, tuple[int, ...]] = {}
        self.turn_over: float | None = None

    def load(self) -> Load:
        """What there is to do for it."""
        oldest = self.held[0].arrived if self.held else None
        members = self.machine.members
        ready = max(1, members.count(MemberPhase.READY) + members.count(MemberPhase.DRAINING))
        inflight = tuple(len(self.running) // ready if one is not MemberPhase.OFF else 0 for one in members)
        return Load(len(self.held), oldest, len(self.queue), len(self.running), inflight, self.finished)


class World:
    """The node. Ticks of `step_s`; `run` until a time."""

    def __init__(
        self,
        memory: Iterable[int],
        models: Iterable[Model],
        *,
        max_wait_s: float = 60.0,
        max_running: int | None = None,
        step_s: float = 0.05,
    ) -> None:
        self.now = 0.0
        self.step_s = step_s
        self.devices = tuple(Device(i, size) for i, size in enumerate(memory))
        self.house = House(self.devices, max_running=max_running, max_wait_s=max_wait_s)
        self.models = {model.name: model for model in models}
        self.done: list[Request] = []
        self.starts: list[str] = []
        self.evictions: Counter[str] = Counter()
        self.refused: list[tuple[str, str]] = []
        self._coming: list[tuple[float, int, Request]] = []
        self._ends: list[tuple[float, int, str, Event]] = []
        self._count = 0

    def send(self, *requests: Request) -> None:
        """These arrive when their time has come."""
        for one in requests:
            self._count += 1
            heapq.heappush(self._coming, (one.arrived, self._count, one))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self.now < until:
            self.now = round(self.now + self.step_s, 6)
            self._arrive()
            for model in self.models.values():
                self._work(model)
            self._effects_end()
            for model in self.models.values():
                self._step(model, Tick(model.load()))
            self._decide()
            self.check()

    def drain(self, at_most_s: float) -> None:
        """Let time pass until every request is answered, or failed."""
        until = self.now + at_most_s
        while self.now < until and self.open():
            self.run(self.now + self.step_s)

    def open(self) -> int:
        """Requests that are neither answered nor failed."""
        return len(self._coming) + sum(
            len(m.held) + len(m.queue) + len(m.running) for m in self.models.values()
        )

    # ---- requests

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            request = heapq.heappop(self._coming)[2]
            self.models[request.pool].held.append(request)

    def _work(self, model: Model) -> None:
        """What a worker does: holds, lets through when the pool is ready, answers."""
        while model.running and model.running[0][0] <= self.now:
            request = heapq.heappop(model.running)[2]
            request.ended = model.finished = self.now
            self.done.append(request)
        phase = model.machine.phase
        if phase is PoolPhase.READY:
            model.queue += model.held
            model.held.clear()
        elif phase is PoolPhase.FAILED:
            for request in model.held:
                request.failed = True
            self.done += model.held
            model.held.clear()
        able = model.places * (
            model.machine.members.count(MemberPhase.READY) or int(phase is PoolPhase.DRAINING)
        )
        while model.queue and len(model.running) < able:
            request = model.queue.popleft()
            request.began = self.now
            self._count += 1
            heapq.heappush(model.running, (self.now + request.service_s, self._count, request))

    # ---- servers

    def _step(self, model: Model, event: Event, gpus: tuple[int, ...] = ()) -> list[Effect]:
        effects = model.machine.step(event, self.now)
        for effect in effects:
            self._begin(model, effect, gpus)
        for member, phase in enumerate(model.machine.members):
            if phase is MemberPhase.OFF:
                model.gpus.pop(member, None)
        return effects

    def _begin(self, model: Model, effect: Effect, gpus: tuple[int, ...]) -> None:
        name, member = model.name, effect.member
        if isinstance(effect, Start):
            model.gpus[member] = gpus
            self.starts.append(name)
            model.fails -= 1
            failed = StartFailed(member, "it failed")
            self._end_in(model.start_s, name, failed if model.fails >= 0 else Started(member))
            model.knows.start = [*model.knows.start, model.start_s][-10:]
        elif isinstance(effect, Stop):
            assert not model.running, f"{name} is stopped under {len(model.running)} requests"
            self._end_in(model.stop_s, name, Stopped(member))
            model.knows.stop = [*model.knows.stop, model.stop_s][-10:]
            if model.turn_over is not None:
                model.knows.drain = [*model.knows.drain, self.now - model.turn_over][-10:]
                model.turn_over = None
        elif isinstance(effect, Wake):
            self._end_in(model.wake_s, name, Woke(member))
        elif isinstance(effect, Sleep):
            assert not model.running
            self._end_in(model.wake_s, name, Slept(member))

    def _end_in(self, seconds: float, name: str, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._ends, (self.now + seconds, self._count, name, event))

    def _effects_end(self) -> None:
        while self._ends and self._ends[0][0] <= self.now:
            _, _, name, event = heapq.heappop(self._ends)
            self._step(self.models[name], event)
            if isinstance(event, Started) and self.models[name].knows.need is None:
                self.models[name].knows.need = self.models[name].takes

    # ---- the house

    def views(self) -> dict[str, View]:
        """How all pools look now."""
        return {
            name: view_of(model.machine, model.load(), model.pool, model.knows, model.gpus, self.now)
            for name, model in self.models.items()
        }

    def _decide(self) -> None:
        for decision in self.house.decide(self.now, self.views()):
            model = self.models[decision.pool]
            if isinstance(decision, Grant):
                effects = self._step(model, Room(), decision.gpus)
                assert len(effects) == 1, f"{decision} was for nothing: {model.machine.phase!r}"
                self.check()
            elif isinstance(decision, Evict):
                busy = model.load().busy
                assert decision.turn == busy, f"{decision} of a pool that is {busy=}"
                assert not model.pool.pinned, f"{decision} of one that stays"
                assert not model.pool.min, f"{decision} of one that always runs"
                before = model.machine.phase
                self._step(model, EvictEvent(decision.turn))
                assert model.machine.phase is not before, f"{decision} had no effect on {before!r}"
                self.evictions["turn" if decision.turn else "idle"] += 1
                model.turn_over = self.now if decision.turn else None
            else:
                assert isinstance(decision, Refuse)
                self.refused.append((decision.pool, decision.reason))
                for effect in model.machine.step(Room(), self.now):
                    model.machine.step(StartFailed(effect.member, decision.reason), self.now)

    def check(self) -> None:
        """Never over memory, by what servers really take; never two of a group, never more pools than allowed."""
        used: Counter[int] = Counter()
        for model in self.models.values():
            for member, phase in enumerate(model.machine.members):
                if phase in _ON_GPU and model.pool.gpus and self.devices:
                    gpus = model.gpus[member]
                    assert len(set(gpus)) == model.pool.gpus
                    for index in gpus:
                        used[index] += model.takes
        for device in self.devices:
            assert used[device.index] <= device.total_bytes, f"over memory on {device}: {used} at {self.now}"
        alive = [m for m in self.models.values() if any(p is not MemberPhase.OFF for p in m.machine.members)]
        groups = Counter(m.pool.group for m in alive if m.pool.group is not None)
        assert not groups or max(groups.values()) == 1, groups
        limit = self.house.max_running
        assert limit is None or len(alive) <= limit


def pool(**terms: object) -> ProcessPool:
    """A pool's configuration, with these terms."""
    return ProcessPool(command=("serve",), **terms)  # type: ignore[arg-type]


def interleaved(
    names: list[str], *, rate: float, seconds: float, service_s: float, seed: int = 1
) -> list[Request]:
    """Requests at random times for random models, at `rate` a second in all."""
    chance = random.Random(seed)
    made, at = [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        made.append(Request(chance.choice(names), round(at, 3), service_s * chance.uniform(0.5, 1.5)))
    return made


def strict_switches(requests: Iterable[Request]) -> int:
    """How often a node with one model at a time would change it, serving requests as they arrived."""
    order = [one.pool for one in sorted(requests, key=lambda one: one.arrived)]
    return sum(a != b for a, b in pairwise(order))
