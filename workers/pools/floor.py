"""What of this node's GPUs is taken, and where there is room. Pure; built anew for each look.

A member takes its pool's need of each of its devices from the grant until it is gone; one that leaves still has it, and
is told apart so that a plan can count on it. A need that nobody knows is a whole device. A member of which nobody knows
where it runs takes its need of every device. Pools of other providers take no device, but they count as running.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .views import Device, View
from .words import MemberPhase

_NOBODY: frozenset[str] = frozenset()
_LEAVING = (MemberPhase.DRAINING, MemberPhase.STOPPING)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one member has of one device. size: None for all of it. later: it will be gone."""

    pool: str
    size: int | None
    leaving: bool


class Floor:
    """The devices with what is on them."""

    def __init__(
        self, devices: Sequence[Device], views: Mapping[str, View], max_running: int | None = None
    ) -> None:
        self._devices = devices
        self._views = views
        self._max_running = max_running
        self._alive = {name for name, view in views.items() if view.alive}
        self._leaving = {name for name, view in views.items() if view.leaving}
        self._parts: dict[int, list[_Part]] = {device.index: [] for device in devices}
        for name, view in views.items():
            for index, part in self._of(name, view):
                self._parts[index].append(part)

    def place(
        self, name: str, *, gone: Collection[str] = _NOBODY, later: bool = False
    ) -> tuple[int, ...] | None:
        """The devices for one member more of a pool; None where there is no room.

        gone: pools to be thought away. later: what leaves is gone.
        """
        absent = {*gone, *self._leaving} if later else {*gone}
        if not self._may_run(name, absent):
            return None
        view = self._views[name]
        if not self._devices or not view.local or not view.gpus:
            return ()
        asleep = next((one for one in view.members if one.phase is MemberPhase.ASLEEP), None)
        if asleep is not None and asleep.gpus:
            own = frozenset(asleep.gpus)
            rooms = [
                device.index
                for device in self._devices
                if device.index in own and self._left(device, gone, later, waking=name) is not None
            ]
            return asleep.gpus if len(rooms) == len(own) else None
        left = [
            (room, device.index)
            for device in self._devices
            if (room := self._left(device, gone, later, wanting=name)) is not None
        ]
        if len(left) < view.gpus:
            return None
        left.sort()  # where least is left over: large rooms stay large
        return tuple(sorted(index for _, index in left[: view.gpus]))

    def take(self, name: str, gpus: Sequence[int]) -> None:
        """Count one member more of a pool, on these devices."""
        view = self._views[name]
        self._alive.add(name)
        self._leaving.discard(name)
        for index in gpus:
            self._parts[index].append(_Part(name, view.need_bytes, False))

    def leaves(self, name: str) -> None:
        """Count a pool as leaving."""
        self._leaving.add(name)
        for index, parts in self._parts.items():
            self._parts[index] = [
                _Part(name, part.size, True) if part.pool == name else part for part in parts
            ]

    def never(self, name: str) -> str | None:
        """Why a pool can have no room for its first member, whoever leaves; None when it can."""
        view = self._views[name]
        gone = {
            other
            for other in self._alive
            if other == name or other in self._leaving or not self._views[other].stays
        }
        if self.place(name, gone=gone) is not None:
            return None
        stay = sorted(self._alive - gone - {name})
        if not self._may_run(name, gone):
            return f"no room: {_named(stay)} always runs, and does not run beside it"
        need = _size(view.need_bytes) if view.need_bytes is not None else "all"
        wanted = f"{need} of {view.gpus} GPU{'s' if view.gpus > 1 else ''}"
        most = max(device.total_bytes for device in self._devices)
        if len(self._devices) < view.gpus or (view.need_bytes or 0) > most:
            return f"no room: it takes {wanted}, this node has {len(self._devices)} of at most {_size(most)}"
        if stay:
            return f"no room: it takes {wanted}, and {_named(stay)} always runs"
        return f"no room: it takes {wanted}, and other programs use them"

    def reserved(self) -> dict[int, int]:
        """Bytes of each device that members have."""
        return {
            device.index: min(
                device.total_bytes,
                sum(
                    device.total_bytes if part.size is None else part.size
                    for part in self._parts[device.index]
                ),
            )
            for device in self._devices
        }

    def _of(self, name: str, view: View) -> Iterator[tuple[int, _Part]]:
        if not view.local or not view.gpus:
            return
        for one in view.members:
            if one.phase is MemberPhase.OFF:
                continue
            size = view.asleep_bytes if one.phase is MemberPhase.ASLEEP else view.need_bytes
            for index in one.gpus or self._parts:
                if index in self._parts:
                    yield index, _Part(name, size, one.phase in _LEAVING)

    def _may_run(self, name: str, absent: Collection[str]) -> bool:
        """Whether neither its group nor the number of pools that run is in its way."""
        view = self._views[name]
        others = [self._views[other] for other in self._alive if other != name and other not in absent]
        if view.group is not None and any(other.group == view.group for other in others):
            return False
        if self._max_running is None or not view.local:
            return True
        return sum(other.local for other in others) < self._max_running

    def _left(
        self, device: Device, gone: Collection[str], later: bool, *, wanting: str = "", waking: str = ""
    ) -> int | None:
        """Bytes of a device that a member more would leave over; None where there is no room for it.

        waking: the pool whose member sleeps there, and has a part already.
        """
        need = self._views[wanting or waking].need_bytes
        parts = [
            part
            for part in self._parts[device.index]
            if part.pool not in gone and not (later and part.leaving)
        ]
        if waking:
            own = next((part for part in parts if part.pool == waking), None)
            if own is not None:
                parts.remove(own)
        if need is None:
            return 0 if not parts else None
        free = device.total_bytes - device.foreign_bytes - need
        for part in parts:
            if part.size is None:
                return None
            free -= part.size
        return free if free >= 0 else None


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
