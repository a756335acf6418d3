"""One pool as a guest of the GPUs: which devices its members have, and what is learned by watching them.

Strategy: a device is a member's from its grant until it is gone. Durations come from its phases as they change; memory
is NVML's sum over the member's processes, where both sides count processes alike, else what is used beyond what was
used before it came, and that only while it is alone on the device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from .footprints import Footprints
from .inventory import Inventory
from .keeper import Keeper
from .words import MemberPhase

log = logging.getLogger(__name__)

AGAIN_S = 60.0
"""A member that does nothing else than before is measured again so often."""

Alone = Callable[["Lodger", int, int], bool]
"""Whether no other server of ours is on a device: the member's pool, its number, the device's."""


class Lodger:
    """Of one keeper. turn_over_at: when its turn was ended, until it has left."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.turn_over_at: float | None = None
        self.phases: list[MemberPhase] = keeper.machine.members
        self._gpus: dict[int, tuple[int, ...]] = {}
        self._keys: dict[int, str] = {}
        self._since: dict[int, float] = {}
        self._asleep: set[int] = set()
        self._measured: dict[int, tuple[MemberPhase, float]] = {}

    def granted(self, member: int, gpus: tuple[int, ...], key: str, now: float) -> None:
        """A member starts, or wakes, on these devices; what is learned of it is kept under this key."""
        self._gpus[member] = gpus
        self._keys[member] = key
        self._since[member] = now

    def gpus(self) -> dict[int, tuple[int, ...]]:
        """By member that is there, or about to be known to be: its devices."""
        running = self.keeper.hand.running
        found = {member: one.gpus or self._gpus.get(member, ()) for member, one in running.items()}
        return {**self._gpus, **found}

    def notice(self, now: float, key: str, footprints: Footprints) -> None:
        """See what its members do now, and learn from how long that took. key: of what is run as configured now."""
        running, after, before = self.keeper.hand.running, self.keeper.machine.members, self.phases
        for member in [*self._gpus]:
            if member not in running and (member >= len(after) or after[member] is MemberPhase.OFF):
                del self._gpus[member]
        if after == before:
            return
        self.phases = after
        for member, phase in enumerate(after):
            was = before[member] if member < len(before) else MemberPhase.OFF
            if phase is was:
                continue
            if was is MemberPhase.OFF and member in running and not running[member].stale:
                self._keys.setdefault(member, key)
            self._learn(member, was, phase, now, footprints)
            if phase is not MemberPhase.STARTING:  # which began when it was granted
                self._since[member] = now
            if phase is MemberPhase.OFF:
                self._asleep.discard(member)
                for kept in (self._keys, self._since, self._measured):
                    kept.pop(member, None)
        if MemberPhase.DRAINING not in after:
            self.turn_over_at = None

    def _learn(
        self, member: int, was: MemberPhase, phase: MemberPhase, now: float, footprints: Footprints
    ) -> None:
        key, since = self._keys.get(member), self._since.get(member)
        if phase is MemberPhase.ASLEEP:
            self._asleep.add(member)
        if key is None or since is None:
            return
        if was is MemberPhase.STARTING and phase is MemberPhase.READY:
            footprints.took(key, "wake" if member in self._asleep else "start", now - since)
            self._asleep.discard(member)
        elif was is MemberPhase.STOPPING and phase is MemberPhase.OFF:
            footprints.took(key, "stop", now - since)
        elif was is MemberPhase.DRAINING and phase is MemberPhase.STOPPING and self.turn_over_at is not None:
            footprints.took(key, "drain", now - self.turn_over_at)

    async def measure(
        self,
        before: Sequence[MemberPhase],
        inventory: Inventory,
        footprints: Footprints,
        alone: Alone,
        now: float,
    ) -> None:
        """Learn what members take that are awake, or asleep, and were before NVML was asked."""
        for member, gpus in self.gpus().items():
            phase = self.phases[member] if member < len(self.phases) else MemberPhase.OFF
            key = self._keys.get(member)
            if phase not in (MemberPhase.READY, MemberPhase.ASLEEP) or key is None:
                continue
            if member >= len(before) or before[member] is not phase:
                continue
            last = self._measured.get(member)
            if last is not None and last[0] is phase and now - last[1] < AGAIN_S:
                continue
            self._measured[member] = (phase, now)
            try:
                pids = set(await asyncio.to_thread(self.keeper.provider.pids, member))
            except OSError as fault:
                log.debug("pids_unknown pool=%s member=%d: %s", self.keeper.name, member, fault)
                pids = set()
            sizes = [self._size(member, index, pids, inventory, alone) for index in gpus]
            if sizes and all(sizes):
                footprints.saw(key, max(sizes), asleep=phase is MemberPhase.ASLEEP)

    def _size(self, member: int, index: int, pids: set[int], inventory: Inventory, alone: Alone) -> int:
        """Bytes that a member takes of a device; 0 where that cannot be told."""
        seen = inventory.seen(index)
        if seen is None:
            return 0
        counted = sum(size for pid, size in (seen.processes or {}).items() if pid in pids)
        if counted:
            return counted
        foreign = inventory.foreign(index)
        if foreign is None or not alone(self, member, index):
            return 0
        return max(0, seen.used_bytes - foreign)
