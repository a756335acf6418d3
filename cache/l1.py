"""L1: answers in memory that all workers share. What any of them stored, all of them find.

Strategy: a look-up is one load of a word, one copy out of the map, and the proof that the copy is the answer; there
is no lock and no private copy. Storing appends to a segment that only this process writes, and ends with one store
of a word. Torn, stale, moved and foreign bytes all look the same to a reader: a miss.

The layout is in `arena.py`, the words in `index.py`, the segments in `log.py`, the proof in `entry.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import xxhash

from .arena import WAYS, Arena
from .counts import Counts
from .digest import Key
from .entry import CHECKSUM_BYTES, FORMAT, TAIL, UNIT_BYTES, VALUE_AT, Entry, packed_bytes, verified
from .index import LENGTH_SHIFT, LOCATION, PLACE, TAG_SHIFT, Index
from .layout import CELL_BYTES
from .log import Log

_words = struct.Struct("@8Q").unpack_from
_place = PLACE.unpack
_xxh3 = xxhash.xxh3_64_intdigest
_tail = TAIL.unpack_from

# A word shifted right by 26 has its length there, in bytes, as 64 times the units of bits 32-47.
_BYTES = 0xFFFF << 6


class L1:
    """One process's way into the shared cache.

    owner: slot and generation of this worker, which no other living process has; None for who never puts. alive:
    whether the worker with such a slot and generation lives; it is asked seldom, and must neither wait nor raise.
    counts: what this object did. capacity_bytes: bytes of the segments, whoever fills them. Not for use from
    several threads. After a fork: an arena and an L1 of the child's own.
    """

    __slots__ = (
        "_cells",
        "_first",
        "_index",
        "_log",
        "_map",
        "_mask",
        "_most",
        "_visited",
        "capacity_bytes",
        "counts",
    )

    def __init__(
        self, arena: Arena, owner: tuple[int, int] | None, alive: Callable[[int, int], bool]
    ) -> None:
        self.counts = Counts()
        self.capacity_bytes = arena.geometry.data_bytes
        self._map = arena.map
        self._cells = arena.cells
        self._index = Index(arena, self.counts)
        self._log = Log(arena, self._index, self.counts, owner, alive)
        self._first = self._index.first
        self._mask = self._index.mask
        self._visited = self._index.visited
        self._most = packed_bytes(arena.geometry.max_entry_bytes)

    def get(self, key: Key, stamp: int, now_ms: int) -> Entry | None:
        """The key's answer, when it was stored under this stamp and is not expired at now_ms; else None."""
        home, tag = _place(key)
        cell = self._first + (home & self._mask)
        word = self._cells[cell]
        if word >> TAG_SHIFT == tag:
            # Most hits end here, so this is `entry.verified` written out.
            at = (word & LOCATION) << 6
            end = at + (word >> 26 & _BYTES) - CHECKSUM_BYTES
            if at:  # an empty word matches tag 0
                try:
                    body = self._map[at:end]
                    if _xxh3(body) == self._cells[end >> 3] and body.startswith(key):
                        of, created_ms, expires_ms, value_end = _tail(body)
                        if of == stamp and expires_ms > now_ms:
                            if not self._map[self._visited + cell]:
                                self._map[self._visited + cell] = 1
                            return Entry(body, value_end - FORMAT, created_ms, expires_ms)
                except (IndexError, struct.error):  # the word pointed beyond the end
                    pass
        return self._elsewhere(key, stamp, now_ms, tag, cell)

    def _elsewhere(self, key: Key, stamp: int, now_ms: int, tag: int, home: int) -> Entry | None:
        """The key's answer from the other words of its set."""
        start = home & -WAYS
        for cell, word in enumerate(_words(self._map, start * CELL_BYTES), start):
            if word >> TAG_SHIFT != tag or cell == home:
                continue
            at = (word & LOCATION) << 6
            end = at + (word >> 26 & _BYTES) - CHECKSUM_BYTES
            if at and end >> 3 < len(self._cells):
                entry = verified(self._map[at:end], self._cells[end >> 3], key, stamp, now_ms)
                if entry is not None:
                    self._map[self._visited + cell] = 1
                    return entry
        return None

    def put(self, key: Key, packed: bytes, now_ms: int) -> bool:
        """Store what `entry.pack` made for this key; False, and counted, when it is too large or there is no room.

        Raises ValueError for bytes that are no such entry's.
        """
        size = len(packed)
        if size % UNIT_BYTES or not packed.startswith(key) or size < VALUE_AT + UNIT_BYTES:
            raise ValueError("these bytes were not packed for this key")
        if size > self._most:
            self.counts.too_large += 1
            return False
        units = size >> 6
        unit = self._log.reserve(units, now_ms)
        if not unit:
            self.counts.skipped += 1
            return False
        at = unit << 6
        self._map[at : at + size] = packed
        self._log.commit(units)
        self._index.insert(key, units << LENGTH_SHIFT | unit, now_ms)
        self.counts.stored += 1
        return True

    def remove(self, key: Key) -> None:
        """Forget a key's entry. A process that is moving or storing it at this moment may bring it back: what must
        be gone is flushed by its epoch.
        """
        self._index.remove(key)

    def used_bytes(self) -> int:
        """Bytes of the segments that hold entries, living and dead, whoever wrote them."""
        return self._log.used_units() * UNIT_BYTES

    def close(self) -> None:
        """Give up the open segment, so that another process goes on in it. Before the slot is released."""
        self._log.seal()
