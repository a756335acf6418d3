"""Worker slots: who is alive, decided by the kernel.

Strategy: a slot belongs to whoever holds its OS lock, and death of any kind frees it; pid, start time and
heartbeat in the row are for people and for finding stuck processes, nobody's life is judged by them. Only the
lock's holder zeroes the slot's tally row: a successor before first use, or a sweeper that got the lock. It
refuses to know what workers do and when they should be replaced.

The row after the workers' is the controller's (`geometry.controller`); it has no tally row, and its lock says
that there is one controller.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .layout import CELL_BYTES, SLOT_ROW_CELLS
from .segment import Segment

_CLAIMED = 0
_PID = 1
_START = 2
_GENERATION = 3
_HEARTBEAT = 4

_CLAIM_ATTEMPTS = 100
_CLAIM_PAUSE_S = 0.001


class SlotTaken(Exception):
    """Somebody alive holds the slot."""


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot's row. start: clock ticks since boot. alive: its lock is held now, whatever else is written."""

    pid: int
    start: int
    generation: int
    heartbeat_ns: int
    alive: bool


class Slot:
    """A claimed slot, this process's until `release` or death.

    index: which. generation: how often the slot has been claimed, this time included; with the index it names
    one life of one worker.
    """

    __slots__ = ("_at", "_segment", "generation", "index")

    def __init__(self, segment: Segment, index: int, generation: int) -> None:
        """For `claim` alone."""
        self.index = index
        self.generation = generation
        self._segment = segment
        self._at = _row(segment, index)

    def heartbeat(self, now_ns: int) -> None:
        """Say that this process's loop still turns; now_ns by the clock the watcher reads too."""
        self._segment.cells[self._at + _HEARTBEAT] = now_ns

    def release(self) -> None:
        """Zero the tally row, mark the slot free, give the lock back. Idempotent."""
        if self._segment.slot_locks.holds(self.index):
            _vacate(self._segment, self.index)
            self._segment.slot_locks.unlock(self.index)


def claim(
    segment: Segment, index: int, pid: int, start: int, *, pause: Callable[[float], None] = time.sleep
) -> Slot:
    """Take a slot: its lock, a zeroed tally row, the next generation, then pid and start time.

    start is in clock ticks since boot (`process_start`). The segment must be this process's own (`create` or
    `attach` after the fork). A sweeper may hold a dead worker's lock for an instant, so the lock is tried for
    about 100 ms, with `pause` in between (in seconds). Raises SlotTaken, and IndexError past the last slot.
    """
    at = _row(segment, index)
    for _ in range(_CLAIM_ATTEMPTS):
        if segment.slot_locks.try_lock(index):
            break
        pause(_CLAIM_PAUSE_S)
    else:
        raise SlotTaken(f"slot {index} is held by process {segment.cells[at + _PID]}")
    cells = segment.cells
    _zero_tally(segment, index)
    generation = cells[at + _GENERATION] + 1
    cells[at + _GENERATION] = generation
    cells[at + _HEARTBEAT] = 0
    cells[at + _START] = start
    cells[at + _PID] = pid
    cells[at + _CLAIMED] = 1
    return Slot(segment, index, generation)


def read_slot(segment: Segment, index: int) -> SlotInfo:
    """A slot as it is now. Raises IndexError past the last one."""
    at = _row(segment, index)
    cells, locks = segment.cells, segment.slot_locks
    return SlotInfo(
        pid=cells[at + _PID],
        start=cells[at + _START],
        generation=cells[at + _GENERATION],
        heartbeat_ns=cells[at + _HEARTBEAT],
        alive=locks.holds(index) or locks.held_elsewhere(index),
    )


def claimed(segment: Segment, index: int) -> bool:
    """Whether a slot's row says that somebody has it, alive or not yet swept; one load."""
    return segment.cells[_row(segment, index) + _CLAIMED] != 0


def alive(segment: Segment, index: int, generation: int) -> bool:
    """Whether one life of one worker still runs: the slot has that generation (32 bits count) and its lock is held.

    False for a slot that is none, so it may be asked with whatever was found in memory.
    """
    if not 0 <= index < segment.geometry.slots:
        return False
    if (segment.cells[_row(segment, index) + _GENERATION] ^ generation) & 0xFFFF_FFFF:
        return False
    return segment.slot_locks.holds(index) or segment.slot_locks.held_elsewhere(index)


def heartbeat_ns(segment: Segment, index: int) -> int:
    """When a slot's holder last said that its loop turns, by its clock. Raises IndexError past the last slot."""
    return segment.cells[_row(segment, index) + _HEARTBEAT]


def sweep(segment: Segment) -> list[int]:
    """Clean up after workers that died: zero their tally rows and mark their slots free.

    A slot is swept when its row is marked claimed or its tally is not zero, and nobody holds its lock.
    Returns the indices swept. A process killed in here leaves the slot for the next sweep.
    """
    swept = []
    zeros = bytes(segment.layout.tally_stride * CELL_BYTES)
    for index in range(segment.geometry.slots):
        claimed = segment.cells[_row(segment, index) + _CLAIMED]
        if (claimed or _tally(segment, index).tobytes() != zeros) and segment.slot_locks.try_lock(index):
            try:
                _vacate(segment, index)
            finally:
                segment.slot_locks.unlock(index)
            swept.append(index)
    return swept


def _row(segment: Segment, index: int) -> int:
    """First cell of a slot's row."""
    if not 0 <= index <= segment.geometry.slots:
        raise IndexError(f"slot {index} of {segment.geometry.slots + 1}")
    return segment.layout.slots_at + index * SLOT_ROW_CELLS


def _tally(segment: Segment, index: int) -> memoryview:
    """The cells of a slot's tally row; none for the controller."""
    layout = segment.layout
    at = layout.tally_at + index * layout.tally_stride
    return segment.cells[at : at + (layout.tally_stride if index < segment.geometry.slots else 0)]


def _zero_tally(segment: Segment, index: int) -> None:
    row = _tally(segment, index)
    for i, value in enumerate(row):
        if value:
            row[i] = 0


def _vacate(segment: Segment, index: int) -> None:
    """Under the slot's lock: the tally first, so that a slot marked free has none."""
    _zero_tally(segment, index)
    at = _row(segment, index)
    for cell in (_PID, _START, _HEARTBEAT, _CLAIMED):
        segment.cells[at + cell] = 0
