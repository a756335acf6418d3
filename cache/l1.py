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
from .digest import KEY_BYTES, Key
from .entry import BODY_AT, FORMAT, TAIL, UNIT_BYTES, Entry, packed_bytes, verified
from .index import LENGTH, LENGTH_SHIFT, LOCATION, PLACE, READ, SET_BYTES, TAG_SHIFT, Index
from .layout import CELL_BYTES
from .log import Log

_LEAST = packed_bytes(0)

_new = object.__new__
_place = PLACE.unpack
_xxh3 = xxhash.xxh3_64_intdigest
_tail = TAIL.unpack_from


class L1:
    """One process's way into the shared cache.

    owner: slot and generation of this worker, which no other living process has; None for who never puts. alive:
    whether the worker with such a slot and generation lives; it is asked seldom, and must neither wait nor raise.
    counts: what this object did. capacity_bytes: bytes of the segments, whoever fills them. Not for use from
    several threads. After a fork: an arena and an L1 of the child's own.
    """

    __slots__ = (
        "_cells",
        "_index",
        "_log",
        "_map",
        "_mask",
        "_most",
        "_tags",
        "_words",
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
        self._words = self._index.words
        self._mask = self._index.mask
        self._tags = self._index.tags
        self._most = packed_bytes(arena.geometry.max_entry_bytes)

    def get(self, key: Key, stamp: int, now_ms: int) -> Entry | None:
        """The key's answer, when it was stored under this stamp and is not expired at now_ms; else None."""
        home, tag = _place(key)
        home &= self._mask
        word = self._words[home]
        if word >> TAG_SHIFT == tag:
            # Nearly every hit ends here: this is `entry.verified` and `Entry()`, written out.
            at = word & LOCATION
            try:
                body = self._map[at + BODY_AT : at + (word >> LENGTH_SHIFT & LENGTH)]
                if _xxh3(body) == self._cells[at >> 3] and body[:KEY_BYTES] == key:
                    of, created_ms, expires_ms, end = _tail(body)
                    if of == stamp and expires_ms > now_ms:
                        if not word & READ and self._words[home] == word:
                            self._words[home] = word | READ
                        entry = _new(Entry)
                        entry.data = body
                        entry.end = end - FORMAT
                        entry.created_ms = created_ms
                        entry.expires_ms = expires_ms
                        return entry
            except (IndexError, struct.error):  # the word pointed beyond the end
                pass
        first = self._tags + (home & -WAYS) * CELL_BYTES
        if tag not in self._map[first : first + SET_BYTES : CELL_BYTES]:
            return None  # as nearly every miss ends
        return self._elsewhere(key, stamp, now_ms, home)

    def _elsewhere(self, key: Key, stamp: int, now_ms: int, home: int) -> Entry | None:
        """The key's answer from another word of its set than its home."""
        for i in self._index.of_key(key, home & -WAYS):
            word = self._words[i]
            at = word & LOCATION
            if i == home or at >> 3 >= len(self._cells):
                continue
            body = self._map[at + BODY_AT : at + (word >> LENGTH_SHIFT & LENGTH)]
            entry = verified(body, self._cells[at >> 3], key, stamp, now_ms)
            if entry is not None:
                self._index.mark(i, word, word | READ)
                return entry
        return None

    def put(self, key: Key, packed: bytes, now_ms: int) -> bool:
        """Store what `entry.pack` made for this key; False, and counted, when it is too large or there is no room.

        Raises ValueError for bytes that are no such entry's.
        """
        size = len(packed)
        if size % UNIT_BYTES or size < _LEAST or packed[BODY_AT : BODY_AT + KEY_BYTES] != key:
            raise ValueError("these bytes were not packed for this key")
        if size > self._most:
            self.counts.too_large += 1
            return False
        at = self._log.append(packed, now_ms)
        if not at:
            self.counts.skipped += 1
            return False
        self._index.insert(key, at, size, now_ms)
        self.counts.stored += 1
        return True

    def remove(self, key: Key) -> None:
        """Forget a key's entry. A process that is moving or storing it at this moment may bring it back: what must
        be gone is flushed by its epoch.
        """
        self._index.remove(key)

    def used_bytes(self) -> int:
        """Bytes of the segments that hold entries, living and dead, whoever wrote them."""
        return self._log.used_bytes()

    def close(self) -> None:
        """Give up the open segment, so that another process goes on in it. Before the slot is released."""
        self._log.seal()
