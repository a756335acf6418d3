"""Which backend holds a stored response, and whose it is: a table in shared memory that all workers read and write.

One 8-byte cell an entry, so one aligned store writes it whole and no lock is needed:

    63 … 32  of a hash of the id, never 0      31 … 12  of a hash of the tenant      11 … 0  the backend's index + 1

Four ways a set, the oldest way gives way by rotation. For finding it is a hint: an entry that was pushed out costs a
question to each backend, a hash met by chance (2^-32, within a set) a 404. What it knows to be another tenant's is
refused; of what it does not know the id alone is the proof, which backends make at random and nobody can guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import xxhash

WAYS = 4
_ID = 0xFFFF_FFFF_0000_0000
_TENANT = 0xFFFF_F000
_BACKEND = 0xFFF


class Foreign(Exception):
    """The response is another tenant's."""


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

    def put(self, response_id: str, backend: int, tenant: str = "") -> None:
        """Remember that this backend holds the response, which is this tenant's.

        One that is known to be another tenant's stays so: vLLM lets clients choose the id of their own.
        """
        tag, base = self._place(response_id)
        cells = self._cells
        way = next((w for w in range(WAYS) if cells[base + w] & _ID in (0, tag)), None)
        if way is not None:
            cell = cells[base + way]
            if cell & _ID and cell & _TENANT != _mark(tenant):
                return
        else:
            self._turn += 1
            way = self._turn % WAYS
        cells[base + way] = tag | _mark(tenant) | (backend + 1)

    def find(self, response_id: str, backends: Sequence[B], tenant: str = "") -> B | None:
        """The one of ``backends`` that holds the response, as far as is known; raises :class:`Foreign`."""
        tag, base = self._place(response_id)
        for way in range(WAYS):
            cell = self._cells[base + way]
            if cell & _ID == tag:
                if cell & _TENANT != _mark(tenant):
                    raise Foreign
                index = (cell & _BACKEND) - 1
                return next((b for b in backends if b.index == index), None)
        return None

    def _place(self, response_id: str) -> tuple[int, int]:
        hashed = xxhash.xxh3_64_intdigest(response_id.encode())
        return (hashed & _ID) or 1 << 32, (hashed % self._sets) * WAYS


def _mark(tenant: str) -> int:
    return xxhash.xxh3_64_intdigest(tenant.encode()) & _TENANT
