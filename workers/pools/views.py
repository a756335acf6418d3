"""What the house is told of each pool, and what it decides. Plain values; times are seconds of one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .words import MemberPhase


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of this node. foreign_bytes: what programs take of it that are no servers of pools."""

    index: int
    total_bytes: int
    foreign_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemberView:
    """One server of a pool. gpus: the devices it was given when it was started, () where nobody knows."""

    phase: MemberPhase
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """One pool at one moment.

    wants_room: members it would start or wake; patient: only where there is room, nobody has to leave.
    waiting: requests held for it; oldest_s: since when the one does that waits longest. running: requests queued or in
    flight, here or at another node. last_used_s: when it had work last. ready_since_s: since when it is ready, None
    while it is not.

    gpus: how many each member takes; need_bytes: what of each of them, None where nobody knows: all of it.
    asleep_bytes: the same of a member that sleeps. min: members that always run. local: its servers run on this node.
    start_s, leave_s: how long a start or wake takes, and from the order to leave until the
    memory is free; None where nobody knows.
    """

    members: tuple[MemberView, ...]
    wants_room: int = 0
    patient: bool = False
    waiting: int = 0
    oldest_s: float | None = None
    running: int = 0
    last_used_s: float = 0.0
    ready_since_s: float | None = None
    gpus: int = 1
    need_bytes: int | None = None
    asleep_bytes: int | None = None
    group: str | None = None
    pinned: bool = False
    min: int = 0
    local: bool = True
    start_s: float | None = None
    leave_s: float | None = None

    @property
    def alive(self) -> bool:
        """Whether any of its servers is there, in whatever phase."""
        return any(one.phase is not MemberPhase.OFF for one in self.members)

    @property
    def leaving(self) -> bool:
        """Whether all of it that is there is on its way out."""
        gone = (MemberPhase.OFF, MemberPhase.DRAINING, MemberPhase.STOPPING)
        return self.alive and all(one.phase in gone for one in self.members)

    @property
    def stays(self) -> bool:
        """Whether it is never told to make room."""
        return self.pinned or self.min > 0

    def without_wishes(self) -> View:
        """The same, as if it wanted no room."""
        return replace(self, wants_room=0)


@dataclass(frozen=True, slots=True)
class Grant:
    """The pool may have one member more, on these devices; () where nobody says. It is to be told Room at once.

    switch: another pool had to leave for it.
    """

    pool: str
    gpus: tuple[int, ...] = ()
    switch: bool = False


@dataclass(frozen=True, slots=True)
class Evict:
    """The pool is to be told Evict, because another needs the room: one without work, or with `turn` one whose time
    is up."""

    pool: str
    turn: bool = False
    room_for: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The pool can never have room as things are: its start fails, with this reason."""

    pool: str
    reason: str


Decision = Grant | Evict | Refuse
