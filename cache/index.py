"""The index of L1: sets of 8 words, each naming one entry, published and removed by one store and no lock.

Strategy: a word is a hint, never the truth. Whoever follows it verifies what lies there. So a word may be stale,
doubled, lost to another writer's store at the same moment, or rubbish, and the worst that comes of it is a miss.
A key has a home word in its set; it lies elsewhere in the set only if the home was taken. A bit of the word
says that the entry was read lately; it lies there because that line of memory is at hand.

There is no compare-and-swap, so whoever changes a word looks at it again just before the store. A store that falls
into that gap all the same brings back what the word said: an entry that is verified as any other, or is gone.

It refuses to know segments and who owns them (`log.py`), and it looks into an entry only to tell whose it is and
how old. The byte layout is in `arena.py`.
"""

from __future__ import annotations

import struct

from .arena import WAYS, Arena
from .counts import Counts
from .digest import KEY_BYTES, Key
from .entry import BODY_AT, UNIT_BYTES
from .layout import CELL_BYTES

# Of a word: read lately (bit 0), location in bytes (bits 0-39), length in units (bits 40-55), tag (bits 56-63).
READ = 1
LOCATION = (1 << 40) - UNIT_BYTES
TAG_SHIFT = 56
#: A length in bytes, shifted by this, is where a word has it in units.
LENGTH_SHIFT = 40 - (UNIT_BYTES.bit_length() - 1)
LENGTH = 0xFFFF * UNIT_BYTES

#: Of a key's 32 bytes: where its home is, and its tag. (Epochs take theirs from the other end.)
PLACE = struct.Struct("<IB27x")

# Of an entry: home, tag, created, expires.
_ENTRY = struct.Struct("<8xIB27x8xQQ")
# Cells of the header that stay zero.
_EMPTY_SET = 24
#: From a set to the next.
SET_BYTES = WAYS * CELL_BYTES

_words = struct.Struct("@8Q").unpack
_place = PLACE.unpack
_entry = _ENTRY.unpack_from


class Index:
    """The words, counted from 0; a key's home is word `home & mask`."""

    __slots__ = ("_counts", "_map", "mask", "tags", "words")

    def __init__(self, arena: Arena, counts: Counts) -> None:
        geometry = arena.geometry
        self._map = arena.map
        self._counts = counts
        # An arena without L1 has one set, which is empty.
        count = geometry.sets * WAYS or WAYS
        first = geometry.index_at // CELL_BYTES if geometry.sets else _EMPTY_SET
        #: where the first word's tag lies in the map: it is the last byte of a word on x86-64
        self.tags = first * CELL_BYTES + CELL_BYTES - 1
        self.mask = count - 1
        self.words = arena.cells[first : first + count]

    def find(self, home: int, word: int) -> int:
        """The number of this word in its key's set, whether read lately or not; -1 when it is not there."""
        at = home & self.mask
        if self.words[at] | READ == word | READ:
            return at
        start = at & -WAYS
        found = self._set(start)
        for said in (word, word | READ):
            if said in found:
                return start + found.index(said)
        return -1

    def mark(self, at: int, before: int, word: int) -> None:
        """Store a word in place of what was there, unless another is there by now."""
        if self.words[at] == before:
            self.words[at] = word

    def insert(self, key: Key, location: int, size_bytes: int, now_ms: int) -> None:
        """Let the key's word name the entry that lies there: the last step of a put."""
        home, tag = _place(key)
        words = self.words
        at = home & self.mask
        word = tag << TAG_SHIFT | size_bytes << LENGTH_SHIFT | location
        first = self.tags + (at & -WAYS) * CELL_BYTES
        tags = self._map[first : first + SET_BYTES : CELL_BYTES]
        if tag in tags and (same := self.of_key(key, at & -WAYS)):
            # The first of them takes it and the others go. That it was read is true of the key.
            self._counts.replaced += 1
            words[same[0]] = word | words[same[0]] & READ
            for other in same[1:]:
                words[other] = 0
            return
        if words[at]:
            at = self._free(at & -WAYS, now_ms)
        words[at] = word

    def remove(self, key: Key) -> None:
        """Zero every word that names an entry of this key."""
        home, _ = _place(key)
        for at in self.of_key(key, home & self.mask & -WAYS):
            self.words[at] = 0

    def of_key(self, key: Key, start: int) -> list[int]:
        """The numbers of a set's words that name entries of this key."""
        first = self.tags + start * CELL_BYTES
        tags = self._map[first : first + SET_BYTES : CELL_BYTES]
        found = []
        at = tags.find(key[4])
        while at >= 0:
            location = (self.words[start + at] & LOCATION) + BODY_AT
            if self._map[location : location + KEY_BYTES] == key:
                found.append(start + at)
            at = tags.find(key[4], at + 1)
        return found

    def _set(self, start: int) -> tuple[int, ...]:
        return _words(self.words[start : start + WAYS])

    def _free(self, start: int, now_ms: int) -> int:
        """A word of the set for another entry, its home being taken: an empty one, else one to be dropped.

        That is one which names nothing of this set or what is expired, else the oldest entry not read lately. When
        all were read, the oldest, and from now on none counts as read.
        """
        words = self._set(start)
        if 0 in words:
            return start + words.index(0)
        oldest: tuple[int, int] | None = None
        unread: tuple[int, int] | None = None
        for at, word in enumerate(words, start):
            try:
                home, tag, created_ms, expires_ms = _entry(self._map, word & LOCATION)
            except struct.error:  # beyond the end
                return at
            if tag != word >> TAG_SHIFT or home & self.mask & -WAYS != start:
                return at
            if expires_ms <= now_ms:
                self._counts.expired += 1
                return at
            age = created_ms, at
            oldest = age if oldest is None else min(oldest, age)
            if not word & READ:
                unread = age if unread is None else min(unread, age)
        self._counts.evicted += 1
        if unread is not None:
            return unread[1]
        for at, word in enumerate(words, start):
            self.mark(at, word, word & ~READ)
        return start if oldest is None else oldest[1]
