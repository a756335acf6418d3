"""A place at a backend: counted from choosing it until its answer ends, fails, or nobody wants it any more."""

from __future__ import annotations

from typing import Protocol


class InflightRow(Protocol):
    """The part of a tally row that a lease needs."""

    def add(self, backend: int, n: int) -> None: ...


class Lease:
    """One request in flight at one backend. ``settle`` may be called on every path; it counts once."""

    __slots__ = ("_backend", "_held", "_row")

    def __init__(self, row: InflightRow, backend: int) -> None:
        self._row = row
        self._backend = backend
        self._held = True
        row.add(backend, 1)

    def settle(self) -> None:
        """Give the place back, once."""
        if self._held:
            self._held = False
            self._row.add(self._backend, -1)
