"""Flight marks: which questions somebody on this node is asking a backend now, and who, so that it is asked once.

Strategy: a mark holds a key, its leader (a worker's slot and that slot's generation) and a deadline; the bytes are
in `layout`. It is looked for and set under its stripe's OS lock, which is tried and never waited for; so of many
that claim one key exactly one leads. The leader alone clears it, by two stores and without the lock. Whoever is
killed leaves nothing to clean up: the lock is freed, and a mark whose leader is dead or whose deadline has passed
is taken over by the next that claims its key, or needs its place. It refuses to know what a flight does and how its
leader is reached.
"""

from __future__ import annotations

import enum
import sys

from .digest import KEY_BYTES, Key
from .layout import CELL_BYTES, MARK_CELLS, MARK_STRIPE_CELLS, MARK_STRIPES
from .segment import Segment
from .slots import alive

_OWNER = 0
_KEY = 1
_DEADLINE = 5
_CLEARED = 6

_GENERATION_BITS = 32
_GENERATION_MASK = (1 << _GENERATION_BITS) - 1
#: Nearer than this to its deadline a mark is cleared under the lock: another may be about to take it over.
_CAREFUL_NS = 1_000_000_000


class Claim(enum.Enum):
    """What a claim got, when no other leads.

    LED: the mark; the caller leads, and clears it. FULL: all marks of the stripe are other flights'. BUSY: another
    process was in the stripe just now. With FULL and BUSY there is no mark.
    """

    LED = "led"
    FULL = "full"
    BUSY = "busy"


_LED = Claim.LED  # looked up once: an enum's members are slow in Python 3.11


class Marks:
    """The marks region, as one worker sees it. `slot` and `generation` are that worker's, its slot's lock held by
    `segment`. Lock order: see `locks`; never two stripes at once.
    """

    __slots__ = ("_at", "_cells", "_locks", "_owner", "_segment", "_view", "cleared_ns", "led")

    def __init__(self, segment: Segment, slot: int, generation: int) -> None:
        self._segment = segment
        self._at = segment.layout.marks_at
        self._cells = segment.cells
        self._view = segment.view
        self._locks = segment.mark_locks
        self._owner = slot << _GENERATION_BITS | (generation & _GENERATION_MASK)
        #: the keys that are marked for this worker, and where
        self.led: dict[Key, int] = {}
        #: when a flight of the stripe that was claimed last had ended last, by whoever led it
        self.cleared_ns = 0

    def claim(self, key: Key, now_ns: int, deadline_ns: int) -> Claim | tuple[int, int]:
        """Lead the flight of `key`, or learn who does: (slot, generation) of a leader that lives, perhaps this one.

        now_ns and deadline_ns are of one clock that all workers share (CLOCK_MONOTONIC). After LED, `clear` must
        follow. Raises ValueError for a key that is not 32 bytes.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes")
        first = int.from_bytes(key[:CELL_BYTES], sys.byteorder)
        stripe = first % MARK_STRIPES
        if not self._locks.try_lock(stripe):
            return Claim.BUSY
        try:
            cells = self._cells
            begin = self._at + stripe * MARK_STRIPE_CELLS
            marks = range(begin, begin + MARK_STRIPE_CELLS, MARK_CELLS)
            place = -1
            cleared_ns = 0
            for at in marks:
                if cells[at + _CLEARED] > cleared_ns:
                    cleared_ns = cells[at + _CLEARED]
                owner = cells[at]
                if not owner:
                    place = at
                elif cells[at + _KEY] == first and self._is(at, key):
                    if self._stands(at, now_ns):
                        return owner >> _GENERATION_BITS, owner & _GENERATION_MASK
                    place = at
                    break
            if place < 0:
                place = next((at for at in marks if not self._stands(at, now_ns)), -1)
                if place < 0:
                    return Claim.FULL
            cells[place] = 0  # whoever is killed from here on leaves a free mark, not one with half a key
            begin = (place + _KEY) * CELL_BYTES
            self._view[begin : begin + KEY_BYTES] = key
            cells[place + _DEADLINE] = deadline_ns
            cells[place] = self._owner
        finally:
            self._locks.unlock(stripe)
        self.led[key] = place
        self.cleared_ns = cleared_ns
        return _LED

    def clear(self, key: Key, now_ns: int) -> None:
        """The leader's: the flight is over. Does nothing when `key` is not, or not any more, this worker's.

        Without the lock, unless the mark's deadline is so near that another may take it over in this moment; then,
        should the lock not be free, the mark stays until that other has it. (A process stopped for longer than a
        second between look and store may clear its successor's mark: then one more leads, and nothing worse.)
        """
        at = self.led.pop(key, -1)
        if at < 0 or self._cells[at] != self._owner:
            return
        cells = self._cells
        if cells[at + _DEADLINE] - now_ns > _CAREFUL_NS:
            if self._is(at, key):
                cells[at + _CLEARED] = now_ns  # first: who finds the mark free finds this too
                cells[at] = 0
            return
        stripe = (at - self._at) // MARK_STRIPE_CELLS
        if self._locks.try_lock(stripe):
            try:
                if cells[at] == self._owner and self._is(at, key):
                    cells[at + _CLEARED] = now_ns
                    cells[at] = 0
            finally:
                self._locks.unlock(stripe)

    def _is(self, at: int, key: Key) -> bool:
        begin = (at + _KEY) * CELL_BYTES
        return bytes(self._view[begin : begin + KEY_BYTES]) == key

    def _stands(self, at: int, now_ns: int) -> bool:
        """Whether a mark that is set still means something. Under the stripe's lock."""
        owner = self._cells[at]
        if self._cells[at + _DEADLINE] <= now_ns or not owner:
            return False
        return alive(self._segment, owner >> _GENERATION_BITS, owner & _GENERATION_MASK)
