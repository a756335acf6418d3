"""A tiny cache with its control segment, seen from outside: joined, looked at, filled, put back as it was.

Strategy: what is right is decided here from the byte formats that `arena.py` and `entry.py` document, and from what
any process can read, not by asking the code that did the writing.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from penstock.cache.arena import H_SEQUENCE, ROW_CELLS, Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import BODY_AT, UNIT_BYTES, VALUE_AT, pack, packed_bytes
from penstock.cache.epoch import Epochs, Scope
from penstock.cache.l1 import L1
from penstock.cache.layout import CELL_BYTES, Geometry
from penstock.cache.segment import Segment, process_start
from penstock.cache.slots import Slot, alive, claim, sweep

from .values import expiry_of, key_named, value_of

_FIELD = (1 << 21) - 1
_END_AND_FORMAT = struct.Struct("<Q")
_FLOCK = struct.Struct("@hhqqi4x")
_FILL_VALUE_BYTES = 500
_FILL_NOW_MS = 10**15  # far behind whatever else is stored, so that the rest counts as expired


@dataclass(frozen=True, slots=True)
class Row:
    """A segment's row, in units."""

    number: int
    w: int
    c: int
    e: int
    slot: int
    generation: int
    sequence: int


class Life:
    """What a process has that takes part: descriptions, a slot and views of its own."""

    def __init__(self, free: Callable[[], object], arena: Arena, slot: Slot, l1: L1) -> None:
        self._free = free
        self.arena = arena
        self.slot = slot
        self.l1 = l1
        self._scopes: dict[tuple[str, str], Scope] = {}

    @property
    def epochs(self) -> Epochs:
        return self.arena.epochs

    def scope(self, model: str, tenant: str) -> Scope:
        found = self._scopes.get((model, tenant))
        if found is None:
            found = self._scopes[model, tenant] = self.epochs.scope(model, tenant)
        return found

    def leave(self) -> None:
        """End as a worker does that was told to."""
        self.l1.close()
        self.vanish()

    def vanish(self) -> None:
        """Give back what the kernel gives back when a process dies; the L1 is not told."""
        self._free()
        self.arena.close()


class World:
    """The shared files, and what must be true of them while nobody is at work."""

    def __init__(self, control: Segment, arena: Arena) -> None:
        self.control = control
        self.arena = arena

    @classmethod
    def make(cls, geometry: ArenaGeometry) -> World:
        shape = Geometry(slots=geometry.slots, backends=1, models=1, counter_bytes=1024, gates=1)
        control = Segment.create(None, shape, owner_pid=os.getpid(), owner_start=1)
        return cls(control, Arena.create(None, geometry, 7))

    def close(self) -> None:
        self.control.close()
        self.arena.close()

    def join(self, slot: int, *, writes: bool = True, apart: bool = False) -> Life:
        """Take part under a slot. apart: with a description of the control segment of one's own, as a fork must;
        others in this process share one, which is quicker.
        """
        control = Segment.attach(self.control.fd) if apart else self.control
        arena = Arena.attach(self.arena.fd)
        claimed = claim(control, slot, os.getpid(), process_start(os.getpid()) or 0)

        owner = (claimed.index, claimed.generation) if writes else None

        def free() -> None:
            control.slot_locks.unlock(slot)
            if apart:
                control.close()

        return Life(free, arena, claimed, L1(arena, owner, functools.partial(alive, control)))

    def sweep(self) -> None:
        """What the supervisor does for dead workers."""
        sweep(self.control)

    def copy(self) -> bytes:
        return self.arena.map[:]

    def put_back(self, copy: bytes) -> None:
        self.arena.map[:] = copy

    def rows(self) -> list[Row]:
        at = self.arena.geometry.rows_at // CELL_BYTES
        found = []
        for number in range(self.arena.geometry.segments):
            state, owner, sequence = self.arena.cells[at : at + 3]
            found.append(
                Row(
                    number,
                    state & _FIELD,
                    state >> 21 & _FIELD,
                    state >> 42 & _FIELD,
                    owner >> 32,
                    owner & 0xFFFFFFFF,
                    sequence,
                )
            )
            at += ROW_CELLS
        return found

    def sequence(self) -> int:
        """The one last given to a segment."""
        return int(self.arena.cells[H_SEQUENCE])

    def lock_held(self) -> bool:
        """Whether anybody has any lock on any byte of the arena's file, near or far."""
        fd = os.open(f"/proc/self/fd/{self.arena.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)  # from 0, of any length
            return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
        finally:
            os.close(fd)

    def entries(self, row: Row) -> list[tuple[int, int]]:
        """Units where the entries of a segment begin and end, by what they say of themselves.

        Raises ValueError where the run does not end exactly at w, or from c on at e.
        """
        found = []
        begin = self.arena.geometry.data_at + row.number * self.arena.geometry.segment_bytes
        for first, last in ((0, row.w), (row.c, row.e)):
            at = first
            while at < last:
                where = begin + at * UNIT_BYTES
                (end,) = _END_AND_FORMAT.unpack_from(self.arena.map, where + BODY_AT + VALUE_AT - 8)
                length = packed_bytes((end & 0xFFFFFFFF) - VALUE_AT) // UNIT_BYTES
                if end >> 32 != 1 or not 0 < length <= last - at:
                    raise ValueError(f"at unit {at} of {row} stands {end:#x}")
                found.append((at, at + length))
                at += length
        return found

    def faults(self) -> list[str]:
        """What is wrong with the files while nobody writes: locks, rows, runs of entries, words."""
        found = ["a lock of the arena is held by nobody alive"] if self.lock_held() else []
        units = self.arena.geometry.segment_bytes // UNIT_BYTES
        for row in self.rows():
            if row.w > units or not row.c <= row.e <= units or (row.c < row.e and row.w > row.c):
                found.append(f"impossible: {row}")
                continue
            if row.sequence > self.sequence():
                found.append(f"a sequence that was never given: {row}")
            try:
                self.entries(row)
            except ValueError as error:
                found.append(str(error))
        return found

    def fill(self, slot: int | None = None, rounds: int = 2) -> int:
        """Write one's fill of alike entries, and count those that can be read in the end.

        Raises AssertionError when an entry that was taken cannot be read at once, or has a wrong byte.
        """
        life = self.join(self.control.geometry.slots - 1 if slot is None else slot)
        try:
            return _fill(life, rounds)
        finally:
            life.leave()

    def fill_faults(self, full: int, living: Collection[Life] = ()) -> list[str]:
        """Fill it with a writer of its own: as many entries as `full` must have room, give or take a segment's.

        living: workers that are there, whose segments are left alone.
        """
        before = self.sequence()
        owners = {(life.slot.index, life.slot.generation) for life in living}
        count = self.fill()
        a_segment = self.arena.geometry.segment_bytes // packed_bytes(_FILL_VALUE_BYTES) + 1
        found = [
            f"was not written to again: {row}, sequence {before} before"
            for row in self.rows()
            if row.sequence <= before and (row.slot, row.generation) not in owners
        ]
        if count < full - a_segment * (1 + len(owners)):
            found.append(f"{count} entries have room where {full} had")
        return found + self.faults()


@functools.lru_cache(maxsize=2048)
def _fill_entry(number: int, stamp: int) -> tuple[Key, bytes, bytes]:
    """Key, value and packed bytes of a fill's entry."""
    key = key_named(f"fill {number}")
    value = value_of(key, 1, _FILL_VALUE_BYTES)
    return key, value, pack(key, stamp, 1, expiry_of(1, _FILL_NOW_MS + 10_000), value)


def _fill(life: Life, rounds: int) -> int:
    geometry = life.arena.geometry
    scope = life.scope("m", "t")
    written = []
    for i in range(rounds * geometry.data_bytes // packed_bytes(_FILL_VALUE_BYTES)):
        stamp = life.epochs.stamp(scope, _fill_entry(i, 0)[0])
        key, value, packed = _fill_entry(i, stamp)
        assert life.l1.put(key, packed, _FILL_NOW_MS), f"entry {i} was not taken"
        found = life.l1.get(key, stamp, _FILL_NOW_MS)
        assert found is not None, f"entry {i} was taken and cannot be read"
        assert found.value == value, f"entry {i} has a wrong byte"
        written.append((key, stamp, value))
    readable = 0
    for key, stamp, value in written:
        found = life.l1.get(key, stamp, _FILL_NOW_MS)
        if found is not None:
            assert found.value == value
            readable += 1
    return readable
