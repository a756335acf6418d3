"""Which backend holds a stored response: a table in shared memory that all workers read and write.

One 8-byte cell an entry: the upper 48 bits of a hash of the id, and the backend's index + 1 in the lower 16, so one
aligned store writes it whole and no lock is needed. Four ways a set, the oldest way gives way by rotation. It is a
hint: an entry that was pushed out costs a question to each backend, a hash met by chance (2^-48) a 404.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import xxhash

WAYS = 4


class HasIndex(Protocol):
    """Anything with a backend index."""

    @property
    def index(self) -> int: ...


B = TypeVar("B", bound=HasIndex)


class Sticky:
    """``cells`` is a ``memoryview`` of u64, a power of two long."""

    __slots__ = ("_cells", "_sets", "_turn")

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._sets = len(cells) // WAYS
        self._turn = 0

    def put(self, response_id: str, backend: int) -> None:
        """Remember that this backend holds the response."""
        tag, base = self._place(response_id)
        cells = self._cells
        way = next((w for w in range(WAYS) if cells[base + w] & ~0xFFFF in (0, tag)), None)
        if way is None:
            self._turn += 1
            way = self._turn % WAYS
        cells[base + way] = tag | (backend + 1)

    def find(self, response_id: str, backends: Sequence[B]) -> B | None:
        """The one of ``backends`` that holds the response, as far as is known."""
        tag, base = self._place(response_id)
        for way in range(WAYS):
            cell = self._cells[base + way]
            if cell & ~0xFFFF == tag and cell & 0xFFFF:
                index = (cell & 0xFFFF) - 1
                return next((b for b in backends if b.index == index), None)
        return None

    def _place(self, response_id: str) -> tuple[int, int]:
        hashed = xxhash.xxh3_64_intdigest(response_id.encode())
        return (hashed & ~0xFFFF) or 1 << 16, (hashed % self._sets) * WAYS
