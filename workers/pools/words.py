"""The words in which the pool machine is told what happens, and says what is to be done. Plain values.

Times are seconds of one monotonic clock. Members of a pool are numbered from 0 to `max` - 1.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ...cache.pool_table import PoolPhase


class MemberPhase(enum.IntEnum):
    """What one server of a pool is doing, with the numbers of :class:`PoolPhase`, as the backend table shows it."""

    OFF = PoolPhase.OFF
    STARTING = PoolPhase.STARTING
    READY = PoolPhase.READY
    DRAINING = PoolPhase.DRAINING
    ASLEEP = PoolPhase.ASLEEP
    STOPPING = PoolPhase.STOPPING


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do for a pool on this node at one moment.

    waiting: requests held until it is ready. oldest_s: since when the one of them that waits longest does, None
    without one. queued, running: of its model. inflight: requests at each member. finished_s: when one ended last.
    """

    waiting: int = 0
    oldest_s: float | None = None
    queued: int = 0
    running: int = 0
    inflight: tuple[int, ...] = ()
    finished_s: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return self.waiting + self.queued + self.running > 0


@dataclass(frozen=True, slots=True)
class Others:
    """What other nodes say of a shared pool.

    may_stop: this node owns the pool and can prove it, so it may put members to sleep and stop them. busy: another
    node has work for it, or had a moment ago, or has not been heard of for less than 30 s. drained: every other node
    holds its requests for the members that this one drains back and has none in flight there. draining: the owner,
    another node, is about to stop it: hold requests back. leaving: members, not all, that the owner, another node, is
    about to end: show them DRAINING. load: requests that wait and run at the other nodes. running: members that other
    nodes have READY. asleep: members that were put to sleep. stops: how often each member, from 0, was stopped or put
    to sleep by whoever owned the pool. over: of a pool that this node is no longer configured with: others go on with
    it, or have ended its servers.
    """

    may_stop: bool = True
    busy: bool = False
    drained: bool = True
    draining: bool = False
    leaving: frozenset[int] = frozenset()
    load: int = 0
    running: frozenset[int] = frozenset()
    asleep: frozenset[int] = frozenset()
    stops: tuple[int, ...] = ()
    over: bool = False


ALONE = Others()


# ---- what happens


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes; what is true now."""

    load: Load
    others: Others = ALONE


@dataclass(frozen=True, slots=True)
class Room:
    """There is room for one more member: what `Machine.wants_room` asked for."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Another pool needs the room. Refused while there is work, unless `turn`: its time is up, so what is in flight
    is finished, what comes anew is held, and it wakes again when it is its turn."""

    turn: bool = False


@dataclass(frozen=True, slots=True)
class WakeAsked:
    """An operator wants it ready, as if one request had come."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """An operator wants it off as soon as nothing is in flight; the next request wakes it."""


@dataclass(frozen=True, slots=True)
class Started:
    """A member is ready: the answer to Start, or one that was found running."""

    member: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A member did not become ready; nothing of it is left."""

    member: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A member is gone: the answer to Stop."""

    member: int


@dataclass(frozen=True, slots=True)
class StopFailed:
    """A member could not be stopped; it is tried again."""

    member: int
    reason: str


@dataclass(frozen=True, slots=True)
class Slept:
    """A member sleeps: the answer to Sleep, or one that was found asleep."""

    member: int


@dataclass(frozen=True, slots=True)
class SleepFailed:
    """A member did not go to sleep; it may be anything, and is stopped."""

    member: int
    reason: str


@dataclass(frozen=True, slots=True)
class Woke:
    """A member is ready again: the answer to Wake."""

    member: int


@dataclass(frozen=True, slots=True)
class WakeFailed:
    """A member did not wake up: it is stopped and started."""

    member: int
    reason: str


@dataclass(frozen=True, slots=True)
class Died:
    """A member that ran is gone, or has not answered for so long that it counts as gone. elsewhere: it is known that
    another node has ended it: that is no fault.
    """

    member: int
    reason: str
    elsewhere: bool = False


Event = (
    Tick
    | Room
    | Evict
    | WakeAsked
    | StopAsked
    | Started
    | StartFailed
    | Stopped
    | StopFailed
    | Slept
    | SleepFailed
    | Woke
    | WakeFailed
    | Died
)


# ---- what is to be done


@dataclass(frozen=True, slots=True)
class Start:
    """Have this member run and answer. Ends in Started or StartFailed."""

    member: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End this member. Ends in Stopped or StopFailed."""

    member: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Have this member sleep at the level. Ends in Slept or SleepFailed."""

    member: int
    level: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Have this member wake up from the level. Ends in Woke or WakeFailed."""

    member: int
    level: int


Effect = Start | Stop | Sleep | Wake
