"""The machine of one pool: told what happens, it says what is to be done. No I/O, no clock, no tasks.

Strategy: every event first settles what it is about, one member; then, with each tick, the pool is looked at as a
whole, and what follows from its state follows again and again until it is so. Nothing is remembered that could be
looked at: demand is what waits now, so a waiter cannot be forgotten and one that leaves takes its demand along.

Who carries the effects out keeps to this. Every effect ends in one of its events. The state is shown as soon as `step`
has returned. At most one effect of a member is under way, but for a Stop, which takes the place of any other: that one
is ended first, and its event no longer told. A start needs room: `wants_room` says for how many members, and one Room
is told for each that the GPUs have place for. What was found running, or asleep, is told as Started or Slept;
what cannot have room, ever, as Room and then StartFailed.

It refuses to know what a member is, which GPUs there are, and which requests wait.
"""

from __future__ import annotations

import enum

from ...cache.pool_table import PoolPhase
from . import words
from .member import Member
from .pace import Pace
from .settling import SETTLE_S as SETTLE_S
from .settling import Settling
from .terms import Terms as Terms
from .words import Effect, Event, Load, MemberPhase, Others

OFF, STARTING, READY = MemberPhase.OFF, MemberPhase.STARTING, MemberPhase.READY
DRAINING, ASLEEP, STOPPING = MemberPhase.DRAINING, MemberPhase.ASLEEP, MemberPhase.STOPPING


class _Cause(enum.Enum):
    QUIET = 0  # nothing to do: what comes cancels it
    ASKED = 1  # a turn that is over, an operator: what comes waits


class _Drain:
    """A drain of the whole pool."""

    __slots__ = ("cause", "settling", "sleep")

    def __init__(self, cause: _Cause, now: float, *, sleep: bool) -> None:
        self.cause = cause
        self.sleep = sleep
        self.settling = Settling(now)


class Machine:
    """One pool. Times are seconds of one monotonic clock; `now` never runs backwards.

    phase: what the pool is doing, since `since`; ready_since: when it last became ready. failures: wakes that failed,
    ever; reason: why the last one did; not_before: when the next is tried. wants_room: members it would start if it
    had room. idle_since: since when there has been no work, None while there is.
    """

    def __init__(self, terms: Terms, now: float) -> None:
        self.terms = terms
        self.phase = PoolPhase.OFF
        self.failures = self.wants_room = 0
        self.reason = ""
        self.not_before = self.ready_since = 0.0
        self.since = now
        self.idle_since: float | None = now
        self._now = self._worked = now
        self._members = [Member() for _ in range(terms.max)]
        self._load = Load()
        self._others = Others(may_stop=False, drained=False)  # until a tick says so
        self._drain: _Drain | None = None
        self._pace = Pace()
        self._grow = self._failed = False
        self._woken = False  # an operator asked
        self._preload = terms.preload
        self._stay_off = False  # an operator asked; members below `min` are not missed until there is work
        self._effects: list[Effect] = []
        self._finish(now)

    @property
    def members(self) -> list[MemberPhase]:
        """The phase of each member; longer than `max` while members end that a new configuration has no place for."""
        return [member.phase for member in self._members]

    @property
    def preloads(self) -> bool:
        """Whether it wants room for nothing but the start that the configuration has it begin with."""
        return self._preload and not (self._woken or self._load.waiting or self.terms.min)

    def step(self, event: Event, now: float) -> list[Effect]:
        """One event; what is to be done about it. Events about a member that does something else mean nothing."""
        now = self._now = max(now, self._now)
        match event:
            case words.Tick(load, others):
                self._tick(load, others, now)
            case words.Room():
                self._room(now)
            case words.Evict(turn):
                self._evict(turn, now)
            case words.WakeAsked():
                self._woken, self._stay_off, self._worked = True, False, now
            case words.StopAsked():
                self._stop_asked(now)
            case _:
                if 0 <= event.member < len(self._members):
                    self._settle(self._members[event.member], event, now)
        return self._finish(now)

    def swap(self, terms: Terms, now: float) -> list[Effect]:
        """Go by new terms from now on; members beyond a smaller `max` drain, and end."""
        now = self._now = max(now, self._now)
        self._preload = terms.preload and (self._preload or not self.terms.preload)
        self.terms = terms
        self._members += [Member() for _ in range(terms.max - len(self._members))]
        self._end_surplus(now)
        return self._finish(now)

    def due(self) -> float:
        """When a tick with the same load as the last is worth while again; infinite when never."""
        terms, members = self.terms, self._members
        times = [self.not_before, *self._pace.due(terms)]
        times += [m.not_before for m in members]
        times += [m.settling.due for m in members if m.settling is not None]
        times += [m.since + terms.idle_timeout_s for m in members if m.phase is ASLEEP]
        if self._drain is not None:
            times.append(self._drain.settling.due)
        if self.idle_since is not None:
            times.append(self.idle_since + terms.idle_timeout_s)
            if terms.sleep_after_s is not None:
                times.append(self.idle_since + terms.sleep_after_s)
        return min((t for t in times if t > self._now), default=float("inf"))

    # ---- events of one member

    def _settle(self, member: Member, event: Event, now: float) -> None:
        doing, phase = member.doing, member.phase
        match event:
            case words.Started() if phase in (OFF, ASLEEP) or isinstance(doing, words.Start):
                self._ready(member, now)
            case words.Woke() if isinstance(doing, words.Wake):
                self._ready(member, now)
            case words.StartFailed(_, reason) if isinstance(doing, words.Start):
                self._fail(member, reason, now)
            case words.WakeFailed(_, reason) if isinstance(doing, words.Wake):
                self.reason = reason
                member.stop(now)
            case words.Slept() if phase is OFF or member.falling_asleep:
                member.asleep(member.level if member.falling_asleep else self.terms.sleep_level, now)
            case words.Slept(i) if phase in (READY, DRAINING) and doing is None and not self._inflight(i):
                member.asleep(self.terms.sleep_level, now)  # another node's doing
            case words.SleepFailed() if member.falling_asleep:
                member.stop(now, in_order=True)
            case words.Stopped() if phase is STOPPING:
                member.off(now)
            case words.StopFailed() if isinstance(doing, words.Stop):
                member.stop_failed(now)
            case words.Died(_, reason) if doing is None and phase is not OFF:
                if phase is STOPPING:
                    member.off(now)
                elif member.die(now) and not self._others.draining:
                    self._fail(member, reason, now)
            case _:
                pass

    def _ready(self, member: Member, now: float) -> None:
        drains, settling = member.phase is DRAINING or self._drain is not None, member.settling
        member.ready(now)
        self._worked = max(self._worked, now)
        if drains:
            member.drain(now, alone=settling is not None and self._drain is None)
        else:
            self._failed = False

    def _fail(self, member: Member, reason: str, now: float) -> None:
        """It did not start. With no other member to hope for the pool has failed, and who waits is told so."""
        member.fail(now)
        self.reason = reason
        if self._drain is None and not any(m.phase not in (OFF, STOPPING) for m in self._within()):
            self.failures += 1
            self._failed, self._woken = True, False
            self.not_before = member.not_before

    # ---- events of the pool

    def _room(self, now: float) -> None:
        if self.wants_room:
            i = self._startable(now)[0]
            member = self._members[i]
            member.start(words.Wake(i, member.level) if member.phase is ASLEEP else words.Start(i), now)
            self._effects += [member.doing] if member.doing else []
            self._grow = False

    def _evict(self, turn: bool, now: float) -> None:
        idle = not self._load.busy and not self._others.busy
        if self.terms.min == 0 and (turn or idle):
            self._begin(_Cause.ASKED if turn else _Cause.QUIET, now)

    def _stop_asked(self, now: float) -> None:
        if self._may_stop:
            self._stay_off = True
            self._woken = self._preload = False
            self._begin(_Cause.ASKED, now)

    def _begin(self, cause: _Cause, now: float, *, sleep: bool = False) -> None:
        """Drain the pool. Where all sleep there is nothing to drain, if other nodes hold their requests back."""
        if not self._alive() or not self._may_stop:
            return
        if not sleep:
            self._woken = self._preload = False
        asleep = all(m.phase is ASLEEP and now >= m.since + SETTLE_S for m in self._alive())
        if asleep and self._others.drained and not sum(self._load.inflight):
            self._end(now, sleep=False)
            return
        drain = self._drain
        if drain is None:
            self._drain = _Drain(cause, now, sleep=sleep)
        else:
            drain.sleep = drain.sleep and sleep
            drain.cause = cause if cause is _Cause.ASKED else drain.cause
        for m in self._members:
            if m.phase in (READY, STARTING, DRAINING) and not m.falling_asleep:
                m.drain(now, alone=False)

    def _end(self, now: float, *, sleep: bool) -> None:
        """The drain is over."""
        self._drain = None
        for i, m in enumerate(self._members):
            if sleep and m.phase is DRAINING and m.doing is None:
                m.sleep(words.Sleep(i, self.terms.sleep_level))
                self._effects += [m.doing] if m.doing else []
            elif not sleep and m.phase in (DRAINING, ASLEEP):
                m.stop(now, in_order=True)

    # ---- time

    def _tick(self, load: Load, others: Others, now: float) -> None:
        self._load, self._others = load, others
        if load.busy or others.busy:
            self._worked = now
        self._worked = max(self._worked, min(load.finished_s, now))
        if load.waiting:
            self._stay_off = False
        if self._failed and now >= self.not_before:
            self._failed = False
        for m in self._members:
            m.held(now)
        if self._drain is not None:
            self._go_on(self._drain, now)
        elif not self._others.draining:
            self._look_idle(now)
        if self._drain is None:
            self._look_members(now)

    def _go_on(self, drain: _Drain, now: float) -> None:
        load, others = self._load, self._others
        wanted = load.busy or others.busy or self._woken
        if not self._alive() or not self._may_stop or (drain.cause is _Cause.QUIET and wanted):
            self._drain = None
            for m in self._members:
                if m.phase is DRAINING and not m.falling_asleep:
                    m.take_back(now)
            return
        if drain.settling.look(others.drained and not (load.queued + load.running + sum(load.inflight)), now):
            self._end(now, sleep=drain.sleep)

    def _look_idle(self, now: float) -> None:
        """Whether the whole pool has had nothing to do for long enough to sleep, or to end."""
        terms, phases = self.terms, [m.phase for m in self._within()]
        if self._load.busy or self._others.busy or self._woken or STARTING in phases:
            return
        if now >= self._worked + terms.idle_timeout_s and terms.min == 0:
            self._begin(_Cause.QUIET, now)
        elif (
            terms.sleep_after_s is not None and READY in phases and now >= self._worked + terms.sleep_after_s
        ):
            self._begin(_Cause.QUIET, now, sleep=True)

    def _look_members(self, now: float) -> None:
        """Whether the pool has a member too many, or one too few."""
        terms, load, within = self.terms, self._load, self._within()
        work = load.waiting + load.queued + load.running + self._others.load
        self._end_surplus(now)
        leaving = [m for m in within if m.drains_alone]
        ready = [i for i, m in enumerate(within) if m.phase is READY]
        while leaving and (not self._may_stop or work > terms.target * len(ready) or self._missing() > 0):
            leaving.pop(0).take_back(now)
            ready = [i for i, m in enumerate(within) if m.phase is READY]
        self._pace.look(work, len(ready), terms.target, now)
        changing = bool(leaving) or any(m.phase is STARTING for m in within)
        self._grow = not changing and self._pace.too_much(now)
        quiet = self._may_stop and not self._others.busy
        if quiet and not changing and len(ready) > max(terms.min, 1) and self._pace.too_little(terms, now):
            within[self._emptiest(ready)].drain(now, alone=True)
        if quiet and self._others.drained and self._missing() <= 0:
            self._end_sleepers(now)
        for i, m in enumerate(self._members):
            if m.settling is not None:
                quiet = self._may_stop and self._others.drained and not self._inflight(i)
                if m.settling.look(quiet, now):
                    m.stop(now, in_order=True)

    def _end_surplus(self, now: float) -> None:
        """Members that the terms have no place for."""
        for m in self._members[self.terms.max :]:
            if m.phase in (READY, STARTING):
                m.drain(now, alone=self._drain is None)
            elif m.phase is ASLEEP and self._may_stop and self._others.drained:
                m.stop(now, in_order=True)

    def _emptiest(self, ready: list[int]) -> int:
        return max(ready) if self.terms.ordered else min(ready, key=lambda i: (self._inflight(i), -i))

    def _end_sleepers(self, now: float) -> None:
        """Members that have slept for long while others work."""
        within = self._within()
        spare = sum(m.phase not in (OFF, STOPPING) for m in within) - self.terms.min
        for m in reversed(within):
            if spare > 0 and m.phase is ASLEEP and now >= m.since + self.terms.idle_timeout_s:
                m.stop(now, in_order=True)
                spare -= 1

    # ---- what follows

    @property
    def _may_stop(self) -> bool:
        return self._others.may_stop and not self._others.draining

    def _within(self) -> list[Member]:
        return self._members[: self.terms.max]

    def _alive(self) -> list[Member]:
        return [m for m in self._members if m.phase not in (OFF, STOPPING)]

    def _inflight(self, i: int) -> int:
        """Requests at a member; where nobody counts them by member, all."""
        load = self._load
        return load.inflight[i] if i < len(load.inflight) else load.queued + load.running

    def _missing(self) -> int:
        """How many members more there should be than are ready or starting."""
        phases = [m.phase for m in self._within()]
        awake = phases.count(READY) + phases.count(STARTING)
        there = awake + phases.count(ASLEEP) + phases.count(DRAINING)
        floor = 0 if self._stay_off else self.terms.min
        wanted = max(1, floor) if self._load.waiting or self._woken or self._preload else 0
        return max(wanted - awake, floor - there, int(self._grow))

    def _startable(self, now: float) -> list[int]:
        """Members that could be started now, the best first: those that sleep, then by number."""
        within = self._within()
        off = [i for i, m in enumerate(within) if m.phase is OFF]
        if self.terms.ordered:
            off = [] if any(m.phase is STOPPING for m in self._members) else off[:1]
        asleep = [i for i, m in enumerate(within) if m.phase is ASLEEP]
        return asleep + [i for i in off if now >= within[i].not_before]

    def _order_stops(self, now: float) -> None:
        for i in range(len(self._members) - 1, -1, -1):
            m = self._members[i]
            may = self._may_stop and (self._others.drained or not m.orderly)
            if may and m.phase is STOPPING and m.doing is None and now >= m.not_before:
                m.stopping(words.Stop(i))
                self._effects += [words.Stop(i)]
            if self.terms.ordered and m.phase is not OFF:
                return

    def _finish(self, now: float) -> list[Effect]:
        self._order_stops(now)
        while len(self._members) > self.terms.max and self._members[-1].phase is OFF:
            self._members.pop()
        phase = self._phase()
        if phase is not self.phase:
            self.phase, self.since = phase, now
            self.ready_since = now if phase is PoolPhase.READY else self.ready_since
        if phase is PoolPhase.READY:
            self._woken = self._preload = False
        held = self._drain is not None or self._others.draining or self._failed
        self.wants_room = 0 if held else max(0, min(self._missing(), len(self._startable(now))))
        busy = self._load.busy or self._others.busy
        self.idle_since = None if busy else self._worked
        effects, self._effects = self._effects, []
        return effects

    def _phase(self) -> PoolPhase:
        if self._drain is not None or self._others.draining:
            return PoolPhase.DRAINING
        phases = {m.phase for m in self._within()}
        if READY in phases:
            return PoolPhase.READY
        if self._failed:
            return PoolPhase.FAILED
        phases.update(m.phase for m in self._members)
        for phase in (STARTING, DRAINING, ASLEEP, STOPPING):
            if phase in phases:
                return PoolPhase(phase)
        return PoolPhase.OFF
