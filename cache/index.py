"""The index of L1: sets of 8 words, each naming one entry, published and removed by one store and no lock.

Strategy: a word is a hint, never the truth. Whoever follows it verifies what lies there. So a word may be stale,
doubled, lost to another writer's store at the same moment, or rubbish, and the worst that comes of it is a miss.
A key has a home word in its set; it lies elsewhere in the set only if the home was taken. A byte beside each word
says that the entry was read lately.

It refuses to know segments and who owns them (`log.py`), and it looks into an entry only to tell whose it is.
The byte layout is in `arena.py`.
"""

from __future__ import annotations

import struct

from .arena import WAYS, Arena
from .counts import Counts
from .digest import Key
from .layout import CELL_BYTES

#: Of a word: location in units (bits 0-31), length in units (bits 32-47), tag (bits 48-63).
LOCATION = (1 << 32) - 1
LENGTH_SHIFT = 32
TAG_SHIFT = 48

#: Of a key's 32 bytes: where its home is, and its tag. (Epochs take theirs from the other end.)
PLACE = struct.Struct("<QH22x")
#: Of an entry's 64: home, tag, created, expires, end.
ENTRY_PLACE = struct.Struct("<QH22x8xQQQ")

# Cells of the header that stay zero: the one set of an arena without an index.
_EMPTY_SET = 24
_SET_BYTES = WAYS * CELL_BYTES
_words = struct.Struct("@8Q").unpack_from
_place = PLACE.unpack
_entry_place = ENTRY_PLACE.unpack_from


class Index:
    """The words and their visited bytes.

    The cell of a home is `first + (home & mask)`; the visited byte of a cell is at `visited + cell`.
    """

    __slots__ = ("_cells", "_counts", "_map", "first", "mask", "visited")

    def __init__(self, arena: Arena, counts: Counts) -> None:
        self._map = arena.map
        self._cells = arena.cells
        self._counts = counts
        geometry = arena.geometry
        if geometry.sets:
            self.first = geometry.index_at // CELL_BYTES
            self.mask = geometry.sets * WAYS - 1
            self.visited = geometry.visited_at - self.first
        else:
            self.first = _EMPTY_SET
            self.mask = 0
            self.visited = 0

    def find(self, home: int, word: int) -> int:
        """The cell that holds exactly this word in its key's set; 0 when there is none."""
        cell = self.first + (home & self.mask)
        if self._cells[cell] == word:
            return cell
        start = cell & -WAYS
        try:
            return start + _words(self._map, start * CELL_BYTES).index(word)
        except ValueError:
            return 0

    def insert(self, key: Key, word: int, now_ms: int) -> None:
        """Make `word`, which lacks its tag, the one that names the key's entry: the last step of a put."""
        home, tag = _place(key)
        cells = self._cells
        word |= tag << TAG_SHIFT
        cell = self.first + (home & self.mask)
        start = cell & -WAYS
        at = start * CELL_BYTES
        if (
            self._map.find(key[8:10], at, at + _SET_BYTES) < 0
        ):  # a tag as in the words: little-endian, as x86-64 is
            if cells[cell]:
                cell = self._free(start, now_ms)
        else:
            mine = self._of_key(key, tag, start)
            if mine:
                self._counts.replaced += 1
                # The home first: so the next one finds it at once.
                cell = mine[0]
                cells[cell] = word
                for other in mine[1:]:
                    cells[other] = 0
                return
            if cells[cell]:
                cell = self._free(start, now_ms)
        visited = self.visited + cell
        if self._map[visited]:
            self._map[visited] = 0
        cells[cell] = word

    def remove(self, key: Key) -> None:
        """Zero every word that names an entry of this key."""
        home, tag = _place(key)
        for cell in self._of_key(key, tag, self.first + (home & self.mask) & -WAYS):
            self._cells[cell] = 0

    def _of_key(self, key: Key, tag: int, start: int) -> list[int]:
        """The cells of a set whose words name entries of this key."""
        found = []
        for cell, word in enumerate(_words(self._map, start * CELL_BYTES), start):
            if word >> TAG_SHIFT == tag and word:
                at = (word & LOCATION) << 6
                if self._map[at : at + len(key)] == key:
                    found.append(cell)
        return found

    def _free(self, start: int, now_ms: int) -> int:
        """A cell of the set for a new word, its home being taken: an empty one, else one to be dropped.

        That is one which names nothing or what is expired, else the oldest entry not read lately. When all were
        read, the oldest, and from now on all count as not read.
        """
        words = _words(self._map, start * CELL_BYTES)
        if 0 in words:
            return start + words.index(0)
        mask, map_ = self.mask, self._map
        oldest = unread = (1 << 64, start)
        for cell, word in enumerate(words, start):
            at = (word & LOCATION) << 6
            try:
                home, tag, created_ms, expires_ms, _ = _entry_place(map_, at)
            except struct.error:  # beyond the end
                return cell
            if tag != word >> TAG_SHIFT or (self.first + (home & mask)) & -WAYS != start:
                return cell
            if expires_ms <= now_ms:
                self._counts.expired += 1
                return cell
            oldest = min(oldest, (created_ms, cell))
            if not map_[self.visited + cell]:
                unread = min(unread, (created_ms, cell))
        self._counts.evicted += 1
        if unread[0] < 1 << 64:
            return unread[1]
        for cell in range(start, start + WAYS):
            map_[self.visited + cell] = 0
        return oldest[1]
