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

from collections.abc import Callable

from .arena import H_SEQUENCE, ROW_CELLS, Arena
from .counts import Counts
from .entry import CHECKSUM_BYTES, FORMAT, UNIT_BYTES, VALUE_AT
from .index import ENTRY_PLACE, LENGTH_SHIFT, TAG_SHIFT, Index
from .layout import CELL_BYTES

_STATE = 0
_OWNER = 1
_SEQUENCE = 2

_C_SHIFT = 21
_E_SHIFT = 42
_FIELD = (1 << 21) - 1
_CELL = (1 << 64) - 1

_CARRIED_A_PUT = 16
_TAIL_UNITS = CHECKSUM_BYTES + UNIT_BYTES - 1  # behind the value's end: the checksum, and up to a whole unit
_ROOM_WORTH = 8  # a sealed segment is opened again for its room when that is an eighth of it

_entry_place = ENTRY_PLACE.unpack_from


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
        self._start = geometry.data_at // UNIT_BYTES
        self._size = geometry.segment_bytes // UNIT_BYTES
        self._row = -1  # none is open: no room, so the first put takes one
        self._base = self._w = self._c = self._e = 0

    def reserve(self, units: int, now_ms: int) -> int:
        """Make room for an entry; the unit of the file where it is to be written, 0 when there is none just now.

        What is there may be overwritten until `commit`; call no other method before that.
        """
        w, c, e = self._w, self._c, self._e
        if self._row >= 0 and (c if c < e else self._size) - w >= units:
            return self._base + w
        left = _CARRIED_A_PUT
        for _ in range(3):  # what is carried may fill a segment or two; then nothing is
            if self._row >= 0:
                left = self._clean(units, now_ms, left)
                if (self._c if self._c < self._e else self._size) - self._w >= units:
                    return self._base + self._w
            if not self._owner or not self._take(units):
                return 0
        self._clean(units, now_ms, 0)
        return self._base + self._w

    def commit(self, units: int) -> None:
        """The entry at the reserved place is whole."""
        self._w += units
        self._publish()

    def seal(self) -> None:
        """Give up the open segment; who comes next may take it."""
        if self._row >= 0:
            self._cells[self._row + _OWNER] = 0
            self._row = -1

    def used_units(self) -> int:
        """Units of all segments that hold entries, dead ones among them."""
        used = 0
        for state in self._column(_STATE):
            w, c, e = _fields(state, self._size)
            used += w + (e - c if c < e else 0)
        return used

    def _clean(self, units: int, now_ms: int, left: int) -> int:
        """Pass over old entries until there is room before the next; returns how many more may be carried."""
        map_, cells, index, counts = self._map, self._cells, self._index, self._counts
        w, c, e = self._w, self._c, self._e
        base = self._base
        while c < e and c - w < units:
            at = (base + c) * UNIT_BYTES
            home, tag, _, expires_ms, end = _entry_place(map_, at)
            end -= FORMAT
            length = (end + _TAIL_UNITS) >> 6
            if end < VALUE_AT or length > e - c:
                c = e  # damaged: what is behind it cannot be walked, and stays until it is overwritten
                break
            cell = index.find(home, tag << TAG_SHIFT | length << LENGTH_SHIFT | base + c)
            if cell:
                visited = index.visited + cell
                if expires_ms <= now_ms:
                    cells[cell] = 0
                    counts.expired += 1
                elif left and map_[visited]:
                    left -= 1
                    counts.carried += 1
                    map_[visited] = 0
                    if w < c:
                        self._move(w, c, length, cell)
                    w += length
                else:
                    cells[cell] = 0
                    counts.evicted += 1
            c += length
        self._w, self._c = w, c
        self._publish()
        return left

    def _move(self, w: int, c: int, length: int, cell: int) -> None:
        """Copy an old entry down to w and have the index name the copy."""
        size = length * UNIT_BYTES
        at = (self._base + c) * UNIT_BYTES
        data = self._map[at : at + size]
        word = self._cells[cell]
        self._w, self._c = w, c + length
        self._publish()  # it is dead where it lies, before it is overwritten
        at = (self._base + w) * UNIT_BYTES
        self._map[at : at + size] = data
        self._w = w + length
        self._publish()
        if self._cells[cell] == word:  # nobody stored another one meanwhile
            self._cells[cell] = word - c + w

    def _publish(self) -> None:
        self._cells[self._row + _STATE] = self._w | self._c << _C_SHIFT | self._e << _E_SHIFT

    def _take(self, units: int) -> bool:
        """Open another segment; the present one is sealed. False when there is none, or another is taking one."""
        if not self._segments or not self._lock.try_lock(0):
            return False
        try:
            found = self._choose(units)
            if found is None:
                return False
            row, (w, c, e) = found
            self._open(row, *((w, c, e) if self._resumable(w, c, e, units) else (0, 0, w)))
        finally:
            self._lock.unlock(0)
        return True

    def _choose(self, units: int) -> tuple[int, tuple[int, int, int]] | None:
        """Of the segments that nobody alive owns, one left unfinished, else the one opened longest ago.

        When there is none, this process's own, to be emptied from its front.
        """
        own = (self._row - self._rows) // ROW_CELLS if self._row >= 0 else -1
        states, owners, sequences = map(self._column, (_STATE, _OWNER, _SEQUENCE))
        last = self._cells[H_SEQUENCE]
        lives = {
            0: False,
            self._owner: False,
        }  # a row of this process's that is not the open one was abandoned
        best: tuple[tuple[bool, int], int, tuple[int, int, int]] | None = None
        for i in range(self._segments):
            owner = owners[i]
            if i == own:
                continue
            if owner not in lives:
                slot = owner >> 32
                lives[owner] = slot < self._slots and self._alive(slot, owner & 0xFFFF_FFFF)
            if lives[owner]:
                continue
            fields = _fields(states[i], self._size)
            # A sequence that was never given out is damage.
            age = sequences[i] if sequences[i] <= last else 0
            rank = (not self._resumable(*fields, units), age)
            if best is None or rank < best[0]:
                best = rank, i, fields
        if best is not None:
            return self._rows + best[1] * ROW_CELLS, best[2]
        return None if own < 0 else (self._row, (self._w, self._c, self._e))

    def _resumable(self, w: int, c: int, e: int, units: int) -> bool:
        """Whether a segment that nobody owns has room worth going on in, some of it perhaps still to be emptied."""
        room = self._size - w
        return room >= units and (c < e or room * _ROOM_WORTH >= self._size)

    def _open(self, row: int, w: int, c: int, e: int) -> None:
        """Under the lock. A kill in here leaves a segment of nobody alive, to be resumed."""
        cells = self._cells
        sequence = (cells[H_SEQUENCE] + 1) & _CELL
        cells[H_SEQUENCE] = sequence
        cells[row + _STATE] = w | c << _C_SHIFT | e << _E_SHIFT
        cells[row + _SEQUENCE] = sequence
        cells[row + _OWNER] = self._owner
        before = self._row
        self._row = row
        self._base = self._start + (row - self._rows) // ROW_CELLS * self._size
        self._w, self._c, self._e = w, c, e
        if before >= 0 and before != row:
            cells[before + _OWNER] = 0

    def _column(self, cell: int) -> list[int]:
        end = self._rows + self._segments * ROW_CELLS
        return self._cells[self._rows + cell : end : ROW_CELLS].tolist()


def _fields(state: int, size: int) -> tuple[int, int, int]:
    """w, c and e; those of an empty segment for what no process can have stored."""
    w, c, e = state & _FIELD, state >> _C_SHIFT & _FIELD, state >> _E_SHIFT
    if w > size or e > size or c > e or (c < e and w > c):
        return 0, 0, 0
    return w, c, e
