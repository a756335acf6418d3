"""Where L1's entries lie: segments, each written by one process at a time, emptied from the front as they are filled.

Strategy: a process owns one open segment and alone writes there, so data needs no lock. In units of 64 bytes a
segment is

    0 ......... w ......... c ......... e ......... size
      new         dead        old         nothing

New entries are appended at w. Where room is short, c advances over the old entries, which were written when the
segment was last open: an entry that was not read since is dropped; one that was is kept, moved down to w, and must
be read again to be kept another time. When nothing old is left the room goes on to the end of the segment, then
the segment is *sealed* (nobody owns it) and the one opened longest ago is *taken*: its new entries become the old
ones. So entries go in the order in which they came, hot ones are carried over, and nothing is ever cut up or
collected. (Segcache, NSDI'21, has the segments; second chance as in CLOCK.)

w, c and e are one cell, stored in one go: a process killed at any instruction leaves [0, w) and [c, e) to be
walked from entry to entry, and everything else is dead. c is stored before anything below it is overwritten, w when
the entry is whole, the index's word after that. A segment whose owner died is taken up where it was left.

Taking is done under the arena's one lock, which is tried and never waited for. It refuses to know keys' meaning and
who is alive (it asks).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from .arena import H_LIFE, H_SEQUENCE, ROW_CELLS, Arena
from .counts import Counts
from .entry import BODY_AT, FORMAT, UNIT_BYTES, VALUE_AT
from .index import LENGTH_SHIFT, READ, TAG_SHIFT, Index
from .layout import CELL_BYTES

# Cells of a row.
STATE = 0
OWNER = 1
SEQUENCE = 2

_FIELD = (1 << 21) - 1
_CELL = (1 << 64) - 1
# What one put may carry, so that it does not take long: entries, and units of this many bytes moved.
_CARRIED_A_PUT = 64
_MOVED_UNIT = 16 * 1024
_ROOM_WORTH = 8  # an unowned segment has room worth going on in when that is an eighth of it
_BEHIND = BODY_AT + UNIT_BYTES - 1  # from the value's end in the body to a whole entry, rounded up
_UNITS = -UNIT_BYTES

# Of an entry: home, tag, expires, end and format.
_ENTRY = struct.Struct("<8xIB27x16xQQ")
_entry = _ENTRY.unpack_from


class _Found(NamedTuple):
    """A segment to be opened, as its row was seen. unfinished: gone on with where it was left, instead of emptied."""

    row: int
    seen: tuple[int, ...]
    unfinished: bool
    w: int
    c: int
    e: int


class Log:
    """The segments, and the one that this process writes.

    owner: slot and generation, which name one life of one worker; None for who only reads. alive: whether such a
    life still goes on; it is asked under the arena's lock and must not wait.
    """

    __slots__ = (
        "_alive",
        "_base",
        "_c",
        "_cells",
        "_counts",
        "_e",
        "_index",
        "_life",
        "_lock",
        "_map",
        "_owner",
        "_row",
        "_rows",
        "_segments",
        "_size",
        "_slots",
        "_start",
        "_w",
    )

    def __init__(
        self,
        arena: Arena,
        index: Index,
        counts: Counts,
        owner: tuple[int, int] | None,
        alive: Callable[[int, int], bool],
    ) -> None:
        geometry = arena.geometry
        self._map = arena.map
        self._cells = arena.cells
        self._lock = arena.lock
        self._index = index
        self._counts = counts
        self._owner = 0 if owner is None else owner[0] << 32 | owner[1]
        self._alive = alive
        self._rows = geometry.rows_at // CELL_BYTES
        self._segments = geometry.segments
        self._slots = geometry.slots
        self._start = geometry.data_at
        self._size = geometry.segment_bytes
        self._life = arena.cells[H_LIFE]
        self._row = -1  # none is open: no room, so the first put takes one
        self._base = self._w = self._c = self._e = 0

    def append(self, packed: bytes, now_ms: int) -> int:
        """Write an entry; where it lies in the file, 0 when there is no room for it just now."""
        size = len(packed)
        w = self._w
        if self._cells[H_LIFE] != self._life:
            return 0
        if self._row < 0 or (self._c if self._c < self._e else self._size) - w < size:
            if not self._make_room(size, now_ms):
                return 0
            w = self._w
        at = self._base + w
        self._map[at : at + size] = packed
        self._w = w = w + size
        self._cells[self._row] = w >> 6 | self._c << 15 | self._e << 36
        return at

    def seal(self) -> None:
        """Give up the open segment; who comes next may take it."""
        row, self._row = self._row, -1
        if row >= 0 and self._cells[row + OWNER] == self._owner and self._cells[H_LIFE] == self._life:
            self._cells[row + OWNER] = 0

    def used_bytes(self) -> int:
        """Bytes of all segments that hold entries, dead ones among them."""
        used = 0
        for state in self._column(STATE):
            w, c, e = _fields(state, self._size)
            used += w + (e - c if c < e else 0)
        return used

    def _make_room(self, size: int, now_ms: int) -> bool:
        """Have an open segment with so many free bytes at w."""
        left = _CARRIED_A_PUT
        for _ in range(3):  # what is carried may fill a segment or two; then nothing is
            if self._row >= 0:
                left = self._clean(size, now_ms, left)
                if (self._c if self._c < self._e else self._size) - self._w >= size:
                    return True
            if not self._take(size):
                return False
        self._clean(size, now_ms, 0)
        return True

    def _clean(self, size: int, now_ms: int, left: int) -> int:
        """Pass over old entries until there is room before the next; returns how much more may be carried."""
        map_, index, counts = self._map, self._index, self._counts
        words, mask = index.words, index.mask
        w, c, e, base = self._w, self._c, self._e, self._base
        while c < e and c - w < size:
            home, tag, expires_ms, end = _entry(map_, base + c)
            end -= FORMAT
            length = (end + _BEHIND) & _UNITS
            if end < VALUE_AT or length > e - c:
                c = e  # damaged: what is behind it cannot be walked, and stays until it is overwritten
                break
            word = tag << TAG_SHIFT | length << LENGTH_SHIFT | base + c
            at = home & mask
            said = words[at]
            if said != word and said != word | READ:
                at = index.find(home, word)
                said = words[at]
            if at >= 0:
                if expires_ms <= now_ms:
                    words[at] = 0
                    counts.expired += 1
                elif left > 0 and said & READ:
                    left -= 1 + (length // _MOVED_UNIT if w < c else 0)
                    counts.carried += 1
                    if w < c:
                        self._move(w, c, length)
                    index.mark(at, said, word - c + w)
                    w += length
                else:
                    words[at] = 0
                    counts.evicted += 1
            c += length
        self._w, self._c = w, c
        self._publish()
        return left

    def _move(self, w: int, c: int, length: int) -> None:
        """Copy an old entry down to w."""
        base = self._base
        data = self._map[base + c : base + c + length]
        self._w, self._c = w, c + length
        self._publish()  # it is dead where it lies, before it is overwritten
        self._map[base + w : base + w + length] = data
        self._w = w + length
        self._publish()

    def _publish(self) -> None:
        # From bytes to units (6) and into place (0, 21, 42).
        self._cells[self._row] = self._w >> 6 | self._c << 15 | self._e << 36

    def _take(self, size: int) -> bool:
        """Open another segment; the present one is sealed. False when there is none, or another is taking one.

        The choice is made before the lock is had, which is then held for a few stores only: a process that is put
        aside while it holds the lock costs every other one its puts.
        """
        found = self._choose(size)
        if found is None or not self._lock.try_lock(0):
            return False
        try:
            if tuple(self._cells[found.row : found.row + 3]) != found.seen:  # another took it meanwhile
                found = self._choose(size)
            if found is None:
                return False
            self._open(found.row, *((found.w, found.c, found.e) if found.unfinished else (0, 0, found.w)))
        finally:
            self._lock.unlock(0)
        return True

    def _choose(self, size: int) -> _Found | None:
        """Of the segments that nobody alive owns, one left unfinished, else the one opened longest ago.

        When there is none, this process's own, to be emptied from its front.
        """
        if not self._owner:
            return None
        last = self._cells[H_SEQUENCE]
        lives = {
            0: False,
            self._owner: False,
        }  # a row of this process's that is not the open one was abandoned
        best: _Found | None = None
        rank = (True, _CELL)
        row = self._rows
        for seen in zip(*map(self._column, (STATE, OWNER, SEQUENCE)), strict=True):
            state, owner, sequence = seen
            if owner not in lives:
                slot = owner >> 32
                lives[owner] = slot < self._slots and self._alive(slot, owner & 0xFFFF_FFFF)
            if not lives[owner] and row != self._row:
                w, c, e = _fields(state, self._size)
                room = self._size - w
                unfinished = room >= size and (c < e or room * _ROOM_WORTH >= self._size)
                # A sequence that was never given out is damage.
                mine = (not unfinished, sequence if sequence <= last else 0)
                if best is None or mine < rank:
                    best = _Found(row, seen, unfinished, w, c, e)
                    rank = mine
            row += ROW_CELLS
        if best is None and self._row >= 0:
            seen = tuple(self._cells[self._row : self._row + 3])
            best = _Found(self._row, seen, False, self._w, self._c, self._e)
        return best

    def _open(self, row: int, w: int, c: int, e: int) -> None:
        """Under the lock. A kill in here leaves a segment of nobody alive, to be resumed."""
        cells, before = self._cells, self._row
        sequence = (cells[H_SEQUENCE] + 1) & _CELL
        cells[H_SEQUENCE] = sequence
        self._row = row
        self._base = self._start + (row - self._rows) // ROW_CELLS * self._size
        self._w, self._c, self._e = w, c, e
        self._publish()
        cells[row + SEQUENCE] = sequence
        cells[row + OWNER] = self._owner
        if before >= 0 and before != row:
            cells[before + OWNER] = 0

    def _column(self, cell: int) -> list[int]:
        end = self._rows + self._segments * ROW_CELLS
        return self._cells[self._rows + cell : end : ROW_CELLS].tolist()


def _fields(state: int, size: int) -> tuple[int, int, int]:
    """w, c and e in bytes; those of an empty segment for what no process can have stored."""
    w, c, e = (state & _FIELD) << 6, (state >> 21 & _FIELD) << 6, (state >> 42 & _FIELD) << 6
    if w > size or e > size or c > e or (c < e and w > c):
        return 0, 0, 0
    return w, c, e
