"""Who may have this node's GPUs: which pool gets room, which makes room, and when. Pure: the clock is an argument.

Strategy: everything is decided anew at each tick from what is true then; nothing is remembered but since when a pool
has asked. A member takes its room from the moment it is granted until it is gone, so two starts never race for the
same memory, and what a stopping server has is nobody's yet. Pools that want room are served in the order of their
oldest request; what the first of them is about to get is kept from those behind it.

Turns (A B A B becomes A A B B): a pool keeps its room while it has work, or had some a moment ago. Only when somebody
would otherwise wait longer than the cap, counting what it takes for the ones before it and for itself to leave and to
start, the pool in the way has had its turn. A start is never broken off.

It refuses to know what a server is, how it is started, and how anybody came by the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from .floor import Floor
from .views import Decision, Device, Evict, Grant, Refuse, View
from .words import MemberPhase

LINGER_SHARE = 0.1
"""A pool without work keeps its turn for this share of what changing over and back again would take."""
LEAST_LINGER_S, MOST_LINGER_S = 0.1, 5.0
GRACE_S = 2.0
"""A pool that has just become ready serves those who waited for it: for so long no turn ends while any are held."""
MARGIN_SHARE = 0.05
"""Of the cap: turns end so much earlier, for what ticks and estimates are off by."""
START_SHARE, LEAVE_SHARE = 0.5, 0.1
"""Of the cap: what a start, and leaving, is taken to last until one was seen."""
MOST_SETS = 500
"""Sets of pools looked at to find the smallest that has to leave; beyond, one that will do."""


class House:
    """All pools of this node and its GPUs. No device known: no limit by memory, and nobody is given any."""

    def __init__(
        self, devices: Sequence[Device] = (), *, max_running: int | None = None, max_wait_s: float = 60.0
    ) -> None:
        self.devices: tuple[Device, ...] = tuple(devices)
        self.max_running = max_running
        self.max_wait_s = max_wait_s
        self._asked: dict[str, float] = {}
        self._cleared: set[str] = set()

    def decide(self, now: float, views: Mapping[str, View]) -> list[Decision]:
        """What is to be done now, in this order. At most one Grant a pool and tick."""
        order = self._wanting(now, views)
        if not order:
            return []
        floor = Floor(self.devices, views, self.max_running)
        made: list[Decision] = []
        blocked: list[str] = []
        told: set[str] = set()
        for name in order:
            grows = _grows(views[name])
            fault = floor.never(name) if not grows else None
            if fault is not None:
                made.append(Refuse(name, fault))
                self._forget(name)
                continue
            gpus = floor.place(name)
            if gpus is not None:
                floor.take(name, gpus)
                made.append(Grant(name, gpus, name in self._cleared))
                self._forget(name)
                continue
            if views[name].patient:
                continue
            victims = self._idle_ones(now, name, views, floor, told)
            if victims is not None:
                self._clear(name, victims, floor, told, made, views)
            elif not grows:
                blocked.append(name)
        for i in range(len(blocked)):
            self._turn(now, blocked[i:], views, floor, told, made)
        return made

    def reserved(self, views: Mapping[str, View]) -> dict[int, int]:
        """Bytes of each device that members have, or have been granted; of one whose size nobody knows all."""
        return Floor(self.devices, views, self.max_running).reserved()

    # ---- who wants what

    def _wanting(self, now: float, views: Mapping[str, View]) -> list[str]:
        """Pools that want room: those without any server first, patient ones last, by the age of what they wait for."""
        for name in [*self._asked]:
            if name not in views or not views[name].wants_room:
                self._forget(name)
        for name, view in views.items():
            if view.wants_room:
                since = self._asked.get(name, now)
                self._asked[name] = min(since, view.oldest_s if view.oldest_s is not None else since)
        return sorted(
            self._asked,
            key=lambda name: (_grows(views[name]) + 2 * views[name].patient, self._asked[name], name),
        )

    def _forget(self, name: str) -> None:
        self._asked.pop(name, None)
        self._cleared.discard(name)

    # ---- who leaves

    def _idle_ones(
        self, now: float, name: str, views: Mapping[str, View], floor: Floor, told: set[str]
    ) -> list[str] | None:
        """The pools without work that have to leave for this one, maybe none beside those that leave already; None
        where that would not be enough."""
        idle = [
            other
            for other, view in views.items()
            if other != name and other not in told and _may_leave(view) and self._idle(now, view)
        ]
        idle.sort(key=lambda other: (views[other].last_used_s, other))
        return _smallest(name, idle, floor)

    def _idle(self, now: float, view: View) -> bool:
        if view.waiting or view.running:
            return False
        there_and_back = 2 * (self._leave_s(view) + self._start_s(view))
        linger = min(max(LINGER_SHARE * there_and_back, LEAST_LINGER_S), MOST_LINGER_S)
        return now - view.last_used_s >= linger

    def _clear(
        self,
        name: str,
        victims: Sequence[str],
        floor: Floor,
        told: set[str],
        made: list[Decision],
        views: Mapping[str, View],
    ) -> None:
        """Have them leave, and keep the room for this one."""
        for other in victims:
            made.append(Evict(other, bool(views[other].waiting or views[other].running), name))
            told.add(other)
            self._cleared.add(name)
            floor.leaves(other)
        gpus = floor.place(name, later=True)
        if gpus is not None:
            floor.take(name, gpus)

    def _turn(
        self,
        now: float,
        blocked: Sequence[str],
        views: Mapping[str, View],
        floor: Floor,
        told: set[str],
        made: list[Decision],
    ) -> None:
        """End the turn of pools with work for the first of these, where it would wait too long otherwise, or one of
        those whose turn is after it would."""
        name = blocked[0]
        candidates = [
            other
            for other, view in views.items()
            if other != name and other not in told and _may_leave(view) and _has_served(now, view)
        ]
        candidates.sort(
            key=lambda other: (bool(views[other].running), views[other].ready_since_s or 0.0, other)
        )
        if floor.place(name, gone=frozenset(candidates), later=True) is None:
            return
        leave_s = max(self._leave_s(views[other]) for other in candidates)
        at = now
        for one in blocked:
            at += leave_s + self._start_s(views[one])
            leave_s = self._leave_s(views[one])
            if at >= self._asked[one] + self.max_wait_s * (1 - MARGIN_SHARE):
                victims = _smallest(name, candidates, floor)
                if victims is not None:
                    self._clear(name, victims, floor, told, made, views)
                return

    def _start_s(self, view: View) -> float:
        return view.start_s if view.start_s is not None else START_SHARE * self.max_wait_s

    def _leave_s(self, view: View) -> float:
        return view.leave_s if view.leave_s is not None else LEAVE_SHARE * self.max_wait_s


def _grows(view: View) -> bool:
    """Whether it has servers that answer, or will, and wants more of them."""
    return any(one.phase in (MemberPhase.READY, MemberPhase.STARTING) for one in view.members)


def _may_leave(view: View) -> bool:
    """Whether it may be told to leave, and is not on its way anyhow. A start is never broken off."""
    phases = [one.phase for one in view.members]
    return (
        not view.stays
        and MemberPhase.STARTING not in phases
        and (MemberPhase.READY in phases or MemberPhase.ASLEEP in phases)
    )


def _has_served(now: float, view: View) -> bool:
    """Whether those who waited for this turn have been let through, and are not just on their way to the server."""
    if view.ready_since_s is not None and now - view.ready_since_s >= GRACE_S:
        return True
    return not view.waiting and (view.running > 0 or now - view.last_used_s >= LEAST_LINGER_S)


def _smallest(name: str, candidates: Sequence[str], floor: Floor) -> list[str] | None:
    """The smallest set of candidates, the first ones first, without which there will be room; None: there is none."""
    if floor.place(name, later=True) is not None:
        return []
    if floor.place(name, gone=frozenset(candidates), later=True) is None:
        return None
    looked_at = 0
    for size in range(1, len(candidates)):
        for some in combinations(candidates, size):
            if floor.place(name, gone=frozenset(some), later=True) is not None:
                return list(some)
            looked_at += 1
            if looked_at >= MOST_SETS:
                return _will_do(name, candidates, floor)
    return list(candidates)


def _will_do(name: str, candidates: Sequence[str], floor: Floor) -> list[str]:
    """A set without which there will be room, and none of which could stay; those at the end stay first."""
    gone = [*candidates]
    for one in reversed(candidates):
        without = [other for other in gone if other != one]
        if floor.place(name, gone=frozenset(without), later=True) is not None:
            gone = without
    return gone
