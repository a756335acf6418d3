"""The machine of one pool in a world of servers, requests, other nodes and operators that do as they like.

Whatever they do: no server is stopped or put to sleep under a request or without the right to, none is started twice
at a time, a pool with work is not evicted, and once the world stops misbehaving every waiter is served.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.words import (
    Died,
    Evict,
    Load,
    MemberPhase,
    Others,
    Room,
    Sleep,
    SleepFailed,
    Slept,
    Start,
    Started,
    StartFailed,
    Stop,
    StopAsked,
    StopFailed,
    Stopped,
    Tick,
    Wake,
    WakeAsked,
    WakeFailed,
    Woke,
)

MOST = 3
OFF, UP, ASLEEP = "off", "up", "asleep"
LANDS_S = 0.05  # a request that was let through is at its member by then
SMALL = st.integers(0, 5)
TERMS = st.builds(
    Terms,
    min=st.sampled_from([0, 0, 0, 1]),
    max=st.integers(1, MOST),
    target=st.sampled_from([1, 2, 4, 8]),
    idle_timeout_s=st.sampled_from([0.5, 2.0, 30.0]),
    sleep_after_s=st.sampled_from([None, 0.3, 3.0, 40.0]),
    sleep_level=st.sampled_from([1, 2]),
    ordered=st.booleans(),
    preload=st.booleans(),
)
OTHERS = st.sampled_from(
    [
        Others(),
        Others(),
        Others(may_stop=False),
        Others(busy=True, drained=False),
        Others(drained=False),
        Others(may_stop=False, draining=True),
        Others(may_stop=False, draining=True, busy=True, drained=False),
    ]
)


@dataclass
class Request:
    """waits: at no member yet, held. Else it is let through to `member` at `since`, and there once `landed`."""

    member: int | None = None
    since: float = 0.0
    landed: bool = False


class World:
    """Servers as they are, requests as workers have them, and a machine that only knows what it is told."""

    def __init__(self, terms: Terms) -> None:
        self.now = 100.0
        self.machine = Machine(terms, self.now)
        self.servers = [OFF] * MOST
        self.pending: dict[int, Start | Stop | Sleep | Wake] = {}
        self.requests: list[Request] = []
        self.others = Others()
        self.finished_s = 0.0
        self.ordered = 0
        self.sound = True
        self.failures = 0

    # ---- what the machine sees and orders

    def load(self) -> Load:
        waiting = sum(r.member is None for r in self.requests)
        at = [sum(r.landed and r.member == i for r in self.requests) for i in range(MOST)]
        running = len(self.requests) - waiting
        return Load(waiting, self.now if waiting else None, 0, running, tuple(at), self.finished_s)

    def tell(self, event, twice=False):
        known = self.machine.members
        for effect in self.machine.step(event, self.now):
            self.order(effect, len(known))
        if twice:
            for effect in self.machine.step(event, self.now):
                assert isinstance(event, Tick), (event, effect)
                self.order(effect, len(known))
        if self.machine.failures > self.failures:
            assert self.machine.failures == self.failures + 1
            assert self.machine.reason
            self.failures = self.machine.failures
            self.requests = [r for r in self.requests if r.member is not None]

    def order(self, effect, known) -> None:
        i = effect.member
        self.sound = False  # until all of this held
        assert 0 <= i < max(known, self.machine.terms.max)
        self.ordered += 1
        if isinstance(effect, Stop | Sleep):
            assert self.others.may_stop, effect
            assert not self.others.draining, effect
            assert self.others.drained or self.servers[i] != UP, effect
            assert not [r for r in self.requests if r.member == i], effect
            assert isinstance(effect, Stop) or i not in self.pending, effect
            if isinstance(effect, Stop) and self.machine.terms.ordered:
                assert not [o for o in self.pending if o > i], effect
        else:
            assert i < self.machine.terms.max, effect
            assert i not in self.pending, (effect, self.pending)
            assert self.servers[i] == (OFF if isinstance(effect, Start) else ASLEEP)
        assert not (isinstance(effect, Stop) and isinstance(self.pending.get(i), Stop)), effect
        self.pending[i] = effect
        self.sound = True

    def tick(self, passed: float) -> None:
        before = self.now
        self.land(min(passed, LANDS_S))
        self.now = before + passed
        self.land(LANDS_S if passed >= LANDS_S else 0.0)
        self.tell(Tick(self.load(), self.others))

    def land(self, passed: float) -> None:
        """Requests on their way arrive; where no server answers they wait again."""
        for r in self.requests:
            if r.member is None or r.landed or self.now + passed < r.since + LANDS_S:
                continue
            if self.servers[r.member] == UP:
                r.landed = True
            else:
                r.member = None

    def release(self, count: int) -> None:
        """Workers let requests through, if the pool is shown ready."""
        ready = [i for i, p in enumerate(self.machine.members) if p is MemberPhase.READY]
        waiting = [r for r in self.requests if r.member is None]
        for n, r in enumerate(waiting[:count] if self.machine.phase is PoolPhase.READY else []):
            r.member, r.since, r.landed = ready[n % len(ready)], self.now, False

    def finish(self, r: Request) -> None:
        self.requests.remove(r)
        self.finished_s = self.now

    def end(self, i: int, well: bool, twice: bool = False) -> None:
        """An effect comes to its end."""
        effect = self.pending.pop(i)
        reason = "as it were"
        if isinstance(effect, Start):
            self.servers[i] = UP if well else OFF
            self.tell(Started(i) if well else StartFailed(i, reason), twice)
        elif isinstance(effect, Wake):
            self.servers[i] = UP if well else self.servers[i]
            self.tell(Woke(i) if well else WakeFailed(i, reason), twice)
        elif isinstance(effect, Sleep):
            self.servers[i] = ASLEEP if well else self.servers[i]
            self.tell(Slept(i) if well else SleepFailed(i, reason), twice)
        else:
            self.servers[i] = OFF if well else self.servers[i]
            self.tell(Stopped(i) if well else StopFailed(i, reason), twice)

    def die(self, i: int, lost: bool) -> None:
        """A server is gone, and its requests with it, or they are tried again."""
        self.servers[i] = OFF
        for r in [r for r in self.requests if r.member == i]:
            if lost:
                self.requests.remove(r)
            else:
                r.member = None
        if i not in self.pending:
            self.tell(Died(i, "killed"))


class Play(RuleBasedStateMachine):
    @initialize(terms=TERMS, up=st.integers(0, MOST))
    def begin(self, terms, up):
        world = self.world = World(terms)
        for i in range(min(up, terms.max)):
            world.servers[i] = UP
            world.tell(Started(i))
        world.tick(0.0)

    @rule(
        passed=st.sampled_from([0.02, 0.02, 0.05, 0.2, 1.0, 6.0]),
        steps=st.integers(1, 12),
        come=st.sampled_from([0, 0, 1, 3]),
        finish=st.booleans(),
        ends=st.sampled_from(["well", "well", "well", "badly", "not"]),
    )
    def life_goes_on(self, passed, steps, come, finish, ends):
        world = self.world
        world.requests += [Request() for _ in range(come)]
        for _ in range(steps):
            world.release(MOST)
            for r in [r for r in world.requests if r.landed and finish]:
                world.finish(r)
            world.tick(passed)
            if world.machine.wants_room:
                world.tell(Room())
            for i in sorted(world.pending):
                world.end(i, True)

    @rule(count=st.sampled_from([1, 1, 1, 2, 7]))
    def requests_come(self, count):
        self.world.requests += [Request() for _ in range(count)]

    @precondition(lambda self: self.world.requests)
    @rule(n=SMALL)
    def one_leaves(self, n):
        requests = self.world.requests
        requests.pop(n % len(requests))

    @rule(count=st.sampled_from([1, 2, 10]))
    def workers_let_through(self, count):
        self.world.release(count)

    @precondition(lambda self: any(r.landed for r in self.world.requests))
    @rule(n=SMALL, all_of_them=st.booleans())
    def requests_finish(self, n, all_of_them):
        landed = [r for r in self.world.requests if r.landed]
        for r in landed if all_of_them else [landed[n % len(landed)]]:
            self.world.finish(r)

    @rule(passed=st.sampled_from([0.0, 0.02, 0.02, 0.02, 0.2, 1.0, 9.0, 1000.0]))
    def time_passes(self, passed):
        self.world.tick(passed)

    @rule(steps=st.integers(1, 4))
    def time_passes_to_where_it_matters(self, steps):
        for _ in range(steps):
            due = self.world.machine.due()
            if due < math.inf:
                self.world.tick(max(0.0, due - self.world.now))

    @rule(count=st.integers(1, 3))
    def there_is_room(self, count):
        for _ in range(count):
            wanted = self.world.machine.wants_room
            before = len(self.world.pending)
            self.world.tell(Room())
            assert len(self.world.pending) == before + bool(wanted)

    @precondition(lambda self: self.world.pending)
    @rule(n=SMALL, well=st.sampled_from([True, True, False]), twice=st.booleans(), lost=st.booleans())
    def an_effect_ends(self, n, well, twice, lost):
        """lost: with it the right to stop."""
        if lost and not well:
            self.world.others = Others(may_stop=False)
            self.world.tick(0.0)
        pending = self.world.pending
        if pending:
            self.world.end(sorted(pending)[n % len(pending)], well, twice)

    @precondition(lambda self: any(s != OFF for s in self.world.servers))
    @rule(n=SMALL, lost=st.booleans())
    def a_server_dies(self, n, lost):
        there = [i for i, s in enumerate(self.world.servers) if s != OFF]
        self.world.die(there[n % len(there)], lost)

    @rule(turn=st.sampled_from([False, False, True]))
    def the_house_wants_the_room(self, turn):
        self.world.tick(0.0)
        machine, busy = self.world.machine, self.world.load().busy
        phase, pending = machine.phase, dict(self.world.pending)
        self.world.tell(Evict(turn))
        if machine.terms.min or (not turn and (busy or self.world.others.busy)):
            assert machine.phase is phase
            assert self.world.pending == pending

    @rule(event=st.sampled_from([WakeAsked(), StopAsked()]))
    def an_operator_asks(self, event):
        self.world.tell(event)

    @rule(others=OTHERS)
    def other_nodes_change(self, others):
        self.world.others = others
        self.world.tick(0.02)

    @precondition(lambda self: self.world.others.draining)
    @rule(n=SMALL)
    def another_node_stops_a_server(self, n):
        i = n % MOST
        if i not in self.world.pending and not [r for r in self.world.requests if r.member == i]:
            self.world.die(i, lost=False)

    @rule(how=st.lists(st.booleans(), min_size=MOST, max_size=MOST))
    def the_controller_is_killed(self, how):
        """What was under way is done, or not; the next machine is told what runs."""
        world = self.world
        for i, effect in world.pending.items():
            if how[i]:
                done = {Start: UP, Wake: UP, Sleep: ASLEEP, Stop: OFF}
                world.servers[i] = done[type(effect)]
        world.pending = {}
        world.machine = Machine(replace(world.machine.terms, max=MOST), world.now)
        world.failures = 0
        for i, server in enumerate(world.servers):
            if server != OFF:
                world.tell(Started(i) if server == UP else Slept(i))

    @rule(terms=TERMS)
    def the_configuration_changes(self, terms):
        known = len(self.world.machine.members)
        terms = replace(terms, ordered=self.world.machine.terms.ordered)
        for effect in self.world.machine.swap(terms, self.world.now):
            self.world.order(effect, known)

    @invariant()
    def what_is_shown_is_so(self):
        world = self.world
        machine = world.machine
        members = machine.members
        assert machine.terms.max <= len(members) <= MOST
        for i, phase in enumerate(members):
            expected = {
                MemberPhase.OFF: (OFF,),
                MemberPhase.READY: (UP,),
                MemberPhase.ASLEEP: (ASLEEP,),
            }.get(phase, (OFF, UP, ASLEEP))
            assert world.servers[i] in expected, (i, phase, world.servers)
        assert all(s == OFF for s in world.servers[len(members) :])
        ready = MemberPhase.READY in members[: machine.terms.max]
        assert ready or machine.phase is not PoolPhase.READY
        assert 0 <= machine.wants_room <= machine.terms.max

    def teardown(self):
        if hasattr(self, "world") and self.world.sound:
            self.settle()

    def settle(self):
        """From here on all goes well. Every waiter is served, and then there is peace."""
        world = self.world
        world.others = Others()
        began = world.now
        for _ in range(600):
            if not world.requests:
                break
            self.behave(5.0)
            world.release(len(world.requests))
        assert not world.requests, (world.machine.phase, world.machine.members, world.requests)
        assert world.now - began < 400.0
        self.behave(5.0)
        ordered = world.ordered
        for _ in range(120):
            self.behave(60.0)
        assert world.ordered - ordered <= 6 * MOST, "it comes to no rest"
        assert not world.pending
        self.after_peace()

    def after_peace(self):
        machine = self.world.machine
        there = sum(s != OFF for s in self.world.servers)
        assert there <= machine.terms.max
        if machine.terms.min == 0:
            assert there == 0, (machine.phase, machine.members)
        else:
            assert there >= machine.terms.min or machine._stay_off
        assert machine.wants_room == 0

    def behave(self, most: float) -> None:
        world = self.world
        for i in sorted(world.pending):
            world.end(i, True)
        while world.machine.wants_room:
            world.tell(Room())
        for r in [r for r in world.requests if r.landed]:
            world.finish(r)
        world.tick(min(max(world.machine.due() - world.now, 0.02), most))


TestWorld = Play.TestCase
TestWorld.settings = settings(
    max_examples=max(50, settings.default.max_examples // 2), stateful_step_count=60, deadline=None
)
