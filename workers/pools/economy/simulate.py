"""Replays requests through the real machines and the real house, with a clock that jumps to where something happens.

Strategy: a heap of what will happen. With each event of a pool its machine is told what is true then; what it orders
ends after the time that such a thing takes; and the machine itself says when time alone would change its mind. A server
works on so many requests at a time, each for as long as it takes whatever else runs; more queue. Nothing fails.

It refuses to know what a GPU does while a request runs: durations are the trace's.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ....cache.pool_table import PoolPhase
from .. import words
from ..house import House
from ..machine import Machine
from ..terms import Terms
from ..views import Device, Evict, Grant, MemberView, View
from ..words import Effect, Event, Load, MemberPhase, Sleep, Start, Stop, Wake
from .trace import Arrival

_ON = frozenset((MemberPhase.STARTING, MemberPhase.READY, MemberPhase.DRAINING, MemberPhase.STOPPING))
HOUSE_S = 0.1
"""So often the house is asked while somebody waits for room; it decides by the clock, and says not when it would."""


@dataclass(frozen=True, slots=True)
class Plant:
    """What servers take. per_server: requests at a time. gpus: of each server. all_gpus None: as many as are wanted."""

    start_s: float = 60.0
    stop_s: float = 5.0
    wake_s: float = 3.0
    sleep_s: float = 1.0
    per_server: int = 100
    gpus: int = 1
    all_gpus: int | None = None
    max_wait_s: float = 60.0


@dataclass
class Outcome:
    """What one replay came to.

    gpu_s: GPU-seconds of servers that were starting, ready, draining or stopping, and always_on_s: of as many as may
    run, all the time; both from the first arrival to when the last request would be done if none had to wait. waits_s:
    of each request, from its arrival until a server took it, sorted. phases: of each model, (time, phase).
    """

    gpu_s: float = 0.0
    always_on_s: float = 0.0
    cold_starts: int = 0
    wakes: int = 0
    waits_s: list[float] = field(default_factory=list)
    phases: dict[str, list[tuple[float, PoolPhase]]] = field(default_factory=dict)

    @property
    def saved_s(self) -> float:
        """GPU-seconds less than always on."""
        return self.always_on_s - self.gpu_s

    def wait_s(self, share: float) -> float:
        """The wait that this share of the requests does not exceed: the nearest rank."""
        return self.waits_s[max(0, math.ceil(share * len(self.waits_s)) - 1)]


def simulate(arrivals: Sequence[Arrival], terms: Terms, plant: Plant) -> Outcome:
    """Replay arrivals, sorted, for pools that all have these terms; one for each model."""
    return _Replay(arrivals, terms, plant).run()


class _Pool:
    """One model: its machine, and where its requests are."""

    __slots__ = (
        "finished_s",
        "gpus",
        "inflight",
        "machine",
        "name",
        "orders",
        "phases",
        "queued",
        "seen_s",
        "tick_at",
        "waiting",
    )

    def __init__(self, name: str, terms: Terms) -> None:
        self.name = name
        self.machine = Machine(terms, 0.0)
        self.waiting: deque[Arrival] = deque()
        self.queued: deque[Arrival] = deque()
        self.inflight = [0] * terms.max
        self.finished_s = self.seen_s = 0.0
        self.gpus: list[tuple[int, ...]] = [()] * terms.max
        self.orders = [0] * terms.max
        self.tick_at = math.inf
        self.phases: list[tuple[float, PoolPhase]] = [(0.0, self.machine.phase)]

    def load(self) -> Load:
        oldest = self.waiting[0].at_s if self.waiting else None
        return Load(
            len(self.waiting),
            oldest,
            len(self.queued),
            sum(self.inflight),
            tuple(self.inflight),
            self.finished_s,
        )


class _Replay:
    def __init__(self, arrivals: Sequence[Arrival], terms: Terms, plant: Plant) -> None:
        self._arrivals, self._plant = arrivals, plant
        self._pools = {name: _Pool(name, terms) for name in sorted({one.model for one in arrivals})}
        self._end_s = max(one.at_s + one.duration_s for one in arrivals)
        devices = [Device(i, 1) for i in range(plant.all_gpus or 0)]
        self._house = House(devices, max_wait_s=plant.max_wait_s)
        self._house_at = math.inf
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._left = len(arrivals)
        self._terms = terms
        self.outcome = Outcome()

    def run(self) -> Outcome:
        arrivals, at = self._arrivals, 0
        for pool in self._pools.values():
            self._look(pool, 0.0)
        while self._left or self._heap:
            next_s = arrivals[at].at_s if at < len(arrivals) else math.inf
            if self._heap and self._heap[0][0] <= next_s:
                now, _, happens = heapq.heappop(self._heap)
                if not self._left and now >= self._end_s:
                    break
                happens(now)
                continue
            if next_s == math.inf:
                break
            pool = self._pools[arrivals[at].model]
            pool.waiting.append(arrivals[at])
            at += 1
            self._look(pool, next_s)
        for pool in self._pools.values():
            self._account(pool, math.inf)
            self.outcome.phases[pool.name] = pool.phases
        servers = len(self._pools) * self._terms.max
        gpus = servers * self._plant.gpus
        self.outcome.always_on_s = self._end_s * min(gpus, self._plant.all_gpus or gpus)
        self.outcome.waits_s.sort()
        return self.outcome

    # ---- what happens

    def _push(self, at_s: float, happens: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, happens))

    def _done(self, pool: _Pool, member: int, now: float) -> None:
        pool.inflight[member] -= 1
        pool.finished_s = now
        self._left -= 1
        self._look(pool, now)

    def _ended(self, pool: _Pool, event: Event, member: int, order: int, now: float) -> None:
        if pool.orders[member] == order:  # not one whose place a Stop took
            self._tell(pool, event, now)
            self._look(pool, now)

    def _due(self, pool: _Pool, now: float) -> None:
        if now == pool.tick_at:
            pool.tick_at = math.inf
            self._look(pool, now)

    def _asked(self, now: float) -> None:
        self._house_at = math.inf
        self._give_room(now)

    # ---- what follows

    def _look(self, pool: _Pool, now: float) -> None:
        """Everything that follows at this moment."""
        self._tell(pool, words.Tick(pool.load()), now)
        if pool.machine.wants_room:
            self._give_room(now)
        self._go_on(pool, now)

    def _go_on(self, pool: _Pool, now: float) -> None:
        self._release(pool, now)
        due = pool.machine.due()
        if due < pool.tick_at:
            pool.tick_at = due
            self._push(due, partial(self._due, pool))

    def _release(self, pool: _Pool, now: float) -> None:
        """Who waits goes to the emptiest member that is ready, or queues."""
        if pool.machine.phase is not PoolPhase.READY:
            pool.waiting.extendleft(reversed(pool.queued))
            pool.queued.clear()
            return
        pool.queued.extend(pool.waiting)
        pool.waiting.clear()
        ready = [i for i, phase in enumerate(pool.machine.members) if phase is MemberPhase.READY]
        while pool.queued:
            member = min(ready, key=pool.inflight.__getitem__)
            if pool.inflight[member] >= self._plant.per_server:
                return
            one = pool.queued.popleft()
            pool.inflight[member] += 1
            self.outcome.waits_s.append(now - one.at_s)
            self._push(now + one.duration_s, partial(self._done, pool, member))

    def _tell(self, pool: _Pool, event: Event, now: float) -> None:
        self._account(pool, now)
        for effect in pool.machine.step(event, now):
            self._order(pool, effect, now)
        if pool.machine.phase is not pool.phases[-1][1]:
            pool.phases.append((now, pool.machine.phase))

    def _order(self, pool: _Pool, effect: Effect, now: float) -> None:
        plant, member = self._plant, effect.member
        end: Event
        match effect:
            case Start():
                takes, end = plant.start_s, words.Started(member)
                self.outcome.cold_starts += 1
            case Stop():
                takes, end = plant.stop_s, words.Stopped(member)
            case Sleep():
                takes, end = plant.sleep_s, words.Slept(member)
            case Wake():
                takes, end = plant.wake_s, words.Woke(member)
                self.outcome.wakes += 1
        pool.orders[member] += 1
        self._push(now + takes, partial(self._ended, pool, end, member, pool.orders[member]))

    def _account(self, pool: _Pool, now: float) -> None:
        """What its servers have taken since the last look."""
        until = min(now, self._end_s)
        if until > pool.seen_s:
            on = sum(phase in _ON for phase in pool.machine.members)
            self.outcome.gpu_s += (until - pool.seen_s) * on * self._plant.gpus
            pool.seen_s = until

    # ---- room

    def _give_room(self, now: float) -> None:
        """Ask the house until it gives no more, and again a moment later while somebody waits for it."""
        granted = True
        while granted:
            granted = False
            views = {name: self._view(pool, now) for name, pool in self._pools.items()}
            for made in self._house.decide(now, views):
                pool = self._pools[made.pool]
                if isinstance(made, Grant):
                    before = pool.machine.members
                    self._tell(pool, words.Room(), now)
                    for i, phase in enumerate(pool.machine.members):
                        if phase is not before[i]:
                            pool.gpus[i] = made.gpus
                            granted = True
                elif isinstance(made, Evict):
                    self._tell(pool, words.Evict(made.turn), now)
                self._go_on(pool, now)
        if self._house_at == math.inf and any(p.machine.wants_room for p in self._pools.values()):
            self._house_at = now + HOUSE_S
            self._push(self._house_at, self._asked)

    def _view(self, pool: _Pool, now: float) -> View:
        machine, plant, load = pool.machine, self._plant, pool.load()
        asleep = MemberPhase.ASLEEP in machine.members
        return View(
            members=tuple(MemberView(p, g) for p, g in zip(machine.members, pool.gpus, strict=True)),
            wants_room=machine.wants_room,
            waiting=load.waiting,
            oldest_s=load.oldest_s,
            running=load.queued + load.running,
            last_used_s=machine.idle_since if machine.idle_since is not None else now,
            ready_since_s=machine.ready_since if machine.phase is PoolPhase.READY else None,
            gpus=plant.gpus,
            need_bytes=1,
            asleep_bytes=0,
            min=self._terms.min,
            start_s=plant.wake_s if asleep else plant.start_s,
            leave_s=plant.stop_s,
        )
