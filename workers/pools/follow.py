"""What a node makes of what others did with a shared pool: events for its own machine. Pure.

Before each Tick of a shared pool the runner steps the machine with what `Follower.events` gives. While `look` is true
it asks the provider which members run (`Provider.status`), a second apart, and steps it with what `found` makes of
the answer.

Strategy: that a member was stopped by another node is believed when that node has let go of it, not before: a start
that overtook the stop would be undone by it. A member that was to be stopped and runs all the same, because its owner
died between the order and the deed, is not taken over as it is but started anew: the start carries the new owner's
fence, and so the late stop, should it come yet, is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .words import Died, Event, MemberPhase, Others, Slept, Started, WakeAsked

_UP = frozenset((MemberPhase.READY, MemberPhase.DRAINING, MemberPhase.ASLEEP))
_DOWN = frozenset((MemberPhase.OFF, MemberPhase.ASLEEP))
STOPPED = "stopped by another node"
NOT_OURS = "no longer this node's to stop"


class Follower:
    """Of one shared pool. look: others have members that run, or this node has just become the owner."""

    def __init__(self) -> None:
        self.look = False
        self._seen: tuple[int, ...] | None = None
        self._owned = False
        self._cut: set[int] = set()

    def events(self, others: Others, members: Sequence[MemberPhase]) -> list[Event]:
        """What has happened elsewhere since the last call. members: of the machine, before its tick."""
        took, self._owned = others.may_stop and not self._owned, others.may_stop
        down = {member for member, phase in enumerate(members) if phase in _DOWN}
        self.look = not others.draining and (
            (self.look and others.may_stop) or took or bool(others.running & down - others.leaving)
        )
        if others.draining:
            return []
        before, made = self._seen, list[Event]()
        for member, phase in enumerate(members):
            if phase is MemberPhase.STOPPING and not others.may_stop:
                made.append(Died(member, NOT_OURS, True))  # unless it is being done: then this means nothing
            elif phase is MemberPhase.OFF and member in others.asleep and (took or not others.may_stop):
                made.append(Slept(member))
        seen = list(others.stops)
        for member, count in enumerate(others.stops if before is not None else ()):
            known = before[member] if before is not None and member < len(before) else 0
            if count <= known:
                continue
            if member in others.leaving:
                seen[member] = known  # it is not over
            elif member in others.asleep:
                made += [Slept(member)] if member < len(members) and members[member] in _UP else []
            else:
                self._cut.add(member)
                if member < len(members) and members[member] in _UP:
                    made.append(Died(member, STOPPED, True))
        self._seen = tuple(seen)
        return made

    def found(self, running: Collection[int], others: Others, members: Sequence[MemberPhase]) -> list[Event]:
        """The members that run, as the provider said: those that are new here."""
        self.look = False
        made: list[Event] = []
        for member in sorted(running):
            if member >= len(members) or members[member] not in _DOWN or others.draining:
                continue
            if member in others.running:
                self._cut.discard(member)
                if members[member] is MemberPhase.ASLEEP:
                    made.append(Died(member, "woken by another node", True))
                made.append(Started(member))
            elif member in self._cut:
                self._cut.discard(member)
                made.append(WakeAsked())
            elif others.may_stop and members[member] is MemberPhase.OFF:
                made.append(Started(member))
        return made
