"""A world for nodes that share a pool, in simulated time: each has the real machine, follower and agreement; the store,
what it loses, the pauses, the partitions and the receiver of starts and stops are the world's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.agreement import Agreement
from penstock.workers.pools.follow import Follower
from penstock.workers.pools.lease import Lease, Seen, Told, Word, lease_of, pack
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.nodes import Timing
from penstock.workers.pools.providers.base import Order
from penstock.workers.pools.words import (
    Died,
    Event,
    Load,
    MemberPhase,
    Room,
    Start,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    Tick,
)

TIMING = Timing(beat_s=0.1, lease_s=0.6, silent_s=3.0)
TICK_S = 0.02
IDLE_S = 0.5
START_S = 0.3


class Away(Exception):
    """The store does not answer."""


class Store:
    """One pool's lease and words, as the real stores keep them."""

    def __init__(self) -> None:
        self.raw = b""
        self.words: dict[str, Word] = {}
        self.up = True
        self.floor = 0
        self.owners: list[tuple[str, int]] = []

    def exchange(self, node: str, told: Told) -> Seen:
        if not self.up:
            raise Away
        for name in told.drop:
            self.words.pop(name, None)
        self.words[node] = told.word
        swapped = told.lease is not None and self.raw.decode() == told.version
        if told.lease is not None and swapped:
            self.raw = pack(told.lease)
            if told.lease.owner and (not self.owners or self.owners[-1][0] != told.lease.owner):
                self.owners.append((told.lease.owner, told.lease.fence))
        lease: Lease | None = lease_of(self.raw) if self.raw else None
        return Seen(lease, self.raw.decode(), swapped, self.floor, dict(self.words))


@dataclass
class Receiver:
    """What is started and stopped, keeping to what docs/pools.md asks of it."""

    up_at: float | None = None
    fence: int = 0
    keys: set[str] = field(default_factory=set)
    starts: int = 0
    stops: int = 0
    refused: int = 0

    def start(self, order: Order, now: float) -> None:
        self.fence = max(self.fence, order.fence)
        if order.key not in self.keys:
            self.keys.add(order.key)
            self.starts += 1
            if self.up_at is None:
                self.up_at = now + START_S

    def stop(self, order: Order) -> bool:
        if order.fence < self.fence:
            self.refused += 1
            return False
        self.fence = order.fence
        self.stops += self.up_at is not None
        self.up_at = None
        return True

    def answers(self, now: float) -> bool:
        return self.up_at is not None and now >= self.up_at


class Node:
    """A gateway: workers, which go on whatever the controller does, and a controller."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.waiting = 0
        self.running: list[float] = []  # when each ends
        self.finished = 0.0
        self.phase = PoolPhase.OFF  # as the workers see it
        self.paused_until = 0.0
        self.cut_until = 0.0
        self.born = 0.0
        self.touched = 0.0  # when it last had an exchange
        self.configured = True
        self.spoke: float | None = None  # since when others could know that it is configured
        self.boot()

    def boot(self) -> None:
        world, self.lives = self.world, self.lives + 1
        now = world.now
        life = f"{self.name}.{self.lives}"
        self.agreement = Agreement("m", life, lambda: f"{world.random.random()}", TIMING, now)
        self.seeing_off = False  # a successor knows nothing of a pool that is not configured
        self.begin()

    def begin(self) -> None:
        now = self.world.now
        self.machine = Machine(Terms(idle_timeout_s=IDLE_S, ordered=True), now)
        self.follower = Follower()
        self.beat_at = now
        self.look_at = 0.0
        self.doing: list[tuple[float, Start | Stop, Order]] = []
        self.effects: list[Start | Stop] = []
        self.born = now

    # ---- another configuration

    def leave(self) -> None:
        """The pool is removed; who waits for it is told so."""
        self.configured, self.spoke, self.waiting = False, None, 0
        self.seeing_off, self.quiet, self.left_at = True, False, self.world.now
        self.ending: tuple[Order, float] | None = None
        self.phase = PoolPhase.OFF
        self.agreement.leave(self.world.now)

    def put_back(self) -> None:
        """While it is seen off it goes on with what it knows; later it begins anew."""
        self.configured = True
        if self.seeing_off:
            self.seeing_off = False
            self.agreement.stay()
            self.begin()
            if self.world.receiver.answers(self.world.now):  # it is adopted
                self.step(Started(0))
        else:
            self.boot()

    # ---- workers

    def work(self) -> None:
        now, receiver = self.world.now, self.world.receiver
        ended = [end for end in self.running if end <= now]
        if ended:
            self.finished = now
            self.running = [end for end in self.running if end > now]
        if self.phase is PoolPhase.READY and self.waiting and receiver.answers(now):
            self.running += [now + self.world.random.uniform(0.01, 0.4) for _ in range(self.waiting)]
            self.world.served += self.waiting
            self.waiting = 0

    # ---- the controller

    def step(self, event: Event) -> None:
        for effect in self.machine.step(event, self.world.now):
            assert isinstance(effect, Start | Stop)
            self.effects.append(effect)
        if self.machine.wants_room:
            for effect in self.machine.step(Room(), self.world.now):
                assert isinstance(effect, Start | Stop)
                self.effects.append(effect)
        self.phase = self.machine.phase

    def load(self) -> Load:
        return Load(self.waiting, None, 0, len(self.running), (len(self.running),), self.finished)

    def control(self) -> None:
        world, now = self.world, self.world.now
        if now < self.paused_until:
            return
        if not self.configured:
            if self.seeing_off:
                self.see_off()
            return
        self.carry_on()
        others = self.agreement.others(now)
        members = self.machine.members
        if members[0] in (MemberPhase.READY, MemberPhase.DRAINING) and not world.receiver.answers(now):
            self.step(Died(0, "refused"))
        for event in self.follower.events(others, self.machine.members):
            self.step(event)
        if self.follower.look and now >= self.look_at:
            self.look_at = now + 0.2
            found = [0] if world.receiver.answers(now) else []
            for event in self.follower.found(found, others, self.machine.members):
                self.step(event)
        self.step(Tick(self.load(), others))
        for effect in self.effects:
            verb = "start" if isinstance(effect, Start) else "stop"
            order = self.agreement.order(verb, 0, ())  # type: ignore[arg-type]
            if isinstance(effect, Stop):
                if not self.confirm(order):
                    self.doing.append((now, effect, Order("", -1)))
                    continue
                if world.random.random() < world.mischief:  # paused between the proof and the deed
                    self.paused_until = now + world.random.choice([0.1, 1.0, 5.0])
            self.doing.append((now, effect, order))
        self.effects = []
        self.beat(self.agreement.tell(self.load(), self.machine.phase, self.machine.members, now))
        if now < self.paused_until:
            return
        self.carry_on()

    def beat(self, urgent: bool) -> None:
        if urgent or self.world.now >= self.beat_at:
            late = self.world.random.random() < 10 * self.world.mischief
            self.beat_at = self.world.now + TIMING.beat_s * (2.5 if late else 1.0)
            self.exchange(None)

    def see_off(self) -> None:
        """As `farewell.see_off` has it."""
        world, now = self.world, self.world.now
        self.quiet = self.quiet or (not self.running and now > self.left_at + 2 * TICK_S)
        ending, self.ending = self.ending, None
        if ending is not None:
            world.stopped(self, *ending)
            if world.receiver.up_at is None:
                world.ended.append(self.name)
                self.release(ended=True)
                return
        load = Load() if self.quiet else Load(running=1)
        urgent = self.agreement.tell(load, PoolPhase.DRAINING, [MemberPhase.DRAINING], now)
        others = self.agreement.others(now)
        if self.quiet and others.over:
            self.release(ended=False)
            return
        if self.quiet and others.may_stop and others.drained:
            self.agreement.tell(load, PoolPhase.DRAINING, [MemberPhase.STOPPING], now)
            order = self.agreement.order("stop", 0, ())
            if self.confirm(order):
                world.agreed_to_end(self)
                self.ending = (order, now)
                if world.random.random() < 10 * world.mischief:
                    self.paused_until = now + world.random.choice([0.1, 1.0, 5.0])
                return
        self.beat(urgent)

    def release(self, *, ended: bool) -> None:
        self.exchange(self.agreement.giving_up(ended=ended))
        self.seeing_off = False

    def carry_on(self) -> None:
        """Do what was begun."""
        world, now = self.world, self.world.now
        if now < self.paused_until:
            return
        doing, self.doing = self.doing, []
        for begun, effect, order in doing:
            if isinstance(effect, Start):
                world.receiver.start(order, now)
                if world.receiver.answers(now):
                    self.step(Started(0))
                elif now > begun + 10 * START_S:
                    self.step(StartFailed(0, "not in time"))
                else:
                    self.doing.append((begun, effect, order))
            elif order.fence < 0:
                self.step(StopFailed(0, "not this node's"))
            else:
                world.stopped(self, order, begun)
                self.step(Stopped(0) if world.receiver.up_at is None else StopFailed(0, "refused"))

    def exchange(self, lease: Lease | None) -> bool:
        world, now = self.world, self.world.now
        if now < self.cut_until:
            return False
        told = self.agreement.told(now, lease=lease)
        try:
            seen = world.store.exchange(self.name, told)
        except Away:
            return False
        if self.configured and (self.spoke is None or now - self.touched >= TIMING.silent_s):
            self.spoke = now
        self.touched = now
        if world.random.random() < world.mischief / 2:
            return False  # it was heard, and its answer lost
        if self.agreement.heard(self.name, seen, now, now):
            for other in world.nodes:
                if (
                    world.random.random() >= 20 * world.mischief
                ):  # hints are lost, and others come late by themselves
                    other.beat_at = min(other.beat_at, now)
        return True

    def confirm(self, order: Order) -> bool:
        now = self.world.now
        lease = self.agreement.confirming(order, now)
        return lease is not None and self.exchange(lease) and self.agreement.confirmed(order, now)


class World:
    """seed decides everything. mischief: how likely each thing that goes wrong does, at its occasion. forgets: the
    store loses what it has, and has a clock, as Redis; otherwise neither, as Kubernetes."""

    def __init__(self, seed: int, nodes: int = 3, mischief: float = 0.0, *, forgets: bool = True) -> None:
        self.forgets = forgets
        self.random = random.Random(seed)
        self.now = 1000.0
        self.mischief = mischief
        self.store = Store()
        self.receiver = Receiver()
        self.served = 0
        self.ended: list[str] = []  # who ended the servers of a pool that was removed
        self.spared: Node | None = None  # it is not killed
        self.lost_at = 0.0
        self.forgot_at = 0.0
        self.cut_off: list[str] = []
        self.kept: list[tuple[bytes, Mapping[str, Word]]] = []
        self.nodes = [Node(self, f"n{i}") for i in range(nodes)]

    def stopped(self, who: Node, order: Order, agreed: float) -> None:
        """A stop arrives at the receiver: nobody that could be heard may have anything in flight.

        But for who began after it was agreed on, took over meanwhile, and had no reason to start anything.
        """
        if order.fence < self.receiver.fence:
            self.receiver.refused += 1
            return
        for node in self.nodes:
            reachable = self.now - node.touched < TIMING.silent_s and node.born <= agreed
            assert not (node.running and reachable and self.receiver.up_at is not None), (
                f"{who.name} stops under {node.name} at {self.now:.2f}"
            )
        self.receiver.stop(order)

    def agreed_to_end(self, who: Node) -> None:
        """One that leaves may end the servers: none stays that it could have heard of."""
        for node in self.nodes if self.now - self.lost_at > TIMING.silent_s else ():
            stays = node.spoke is not None and self.now - node.spoke > TIMING.lease_s
            reachable = self.now - node.touched < TIMING.silent_s
            assert not (stays and reachable), f"{who.name} ends what {node.name} has at {self.now:.2f}"

    def run(self, for_s: float, *, requests: float = 0.0, trouble: bool = False) -> None:
        """requests: a second, for each node."""
        until = self.now + for_s
        while self.now < until:
            self.now += TICK_S
            self.store.floor = int(self.now * 1000) if self.forgets else 0
            if trouble:
                self.upset()
            for node in self.random.sample(self.nodes, len(self.nodes)):
                if self.random.random() < requests * TICK_S and node.configured:
                    node.waiting += 1
                node.work()
                node.control()
                node.work()
            self.check()

    def upset(self) -> None:
        roll = self.random
        if roll.random() < 0.004:
            roll.choice(self.nodes).paused_until = self.now + roll.choice([0.2, 0.8, 2.0, 4.0])
        if roll.random() < 0.004:
            roll.choice(self.nodes).cut_until = self.now + roll.choice([0.2, 0.8, 2.0, 4.0])
        if roll.random() < 0.002:
            node = roll.choice(self.nodes)
            if self.now >= node.paused_until and node is not self.spared:
                node.boot()
        if roll.random() < 0.002:
            self.store.up = not self.store.up
        elif not self.store.up and roll.random() < 0.02:
            self.store.up = True
        if not self.forgets:
            return
        if roll.random() < 0.001:
            self.store.raw, self.store.words = b"", {}
            self.lost_at = self.now
        if roll.random() < 0.01:
            self.kept.append((self.store.raw, dict(self.store.words)))
        if self.kept and roll.random() < 0.0005:  # a replica that lags becomes the master
            self.store.raw, words = self.kept[-1]
            self.forgot_at = self.lost_at = self.now
            self.store.words = dict(words)

    def check(self) -> None:
        if self.now - self.forgot_at < TIMING.lease_s:
            return  # what was lost may have been a take-over; only one of the two can confirm a stop
        owners = [n.name for n in self.nodes if self.now >= n.paused_until and n.agreement.proven(self.now)]
        assert len(owners) <= 1, f"{owners} own it at {self.now:.2f}"
        fences = [fence for _, fence in self.store.owners]
        assert fences == sorted(set(fences)), "a fencing number that does not grow"
