"""Gates: small states of which the contract says *exact*, such as a rate cell or a breaker's single probe.

Strategy: a stripe of eight cells is read, changed and written under its OS lock, which is tried and never
waited for. Each stripe has two copies and a sequence whose lowest bit says which one counts; an update fills
the other copy and then stores the sequence. So a process killed at any instruction leaves the old state or
the new one whole, and its lock free. It refuses to know what the cells mean and which stripe is whose.
"""

from __future__ import annotations

from collections.abc import Callable

from .layout import GATE_CELLS, GATE_STRIPE_CELLS
from .segment import Segment


class Gates:
    """The limits and gates region. Lock order: see `locks`; never two stripes at once."""

    __slots__ = ("_at", "_cells", "_count", "_locks")

    def __init__(self, segment: Segment) -> None:
        self._at = segment.layout.gates_at
        self._cells = segment.cells
        self._count = segment.geometry.gates
        self._locks = segment.gate_locks

    def update(self, stripe: int, fn: Callable[[list[int]], list[int]]) -> bool:
        """Replace a stripe's eight cells by fn of them; False, and fn not called, when its lock was not free.

        fn must be quick, and neither await nor log: it runs under the lock. What it raises comes out, and the
        state stays as it was; so does a result that is not eight unsigned 64-bit integers (ValueError).
        Raises IndexError past the last stripe.
        """
        if stripe < 0:
            raise IndexError(f"stripe {stripe}")
        locks = self._locks
        if not locks.try_lock(stripe):
            return False
        try:
            cells = self._cells
            at = self._at + stripe * GATE_STRIPE_CELLS
            sequence = cells[at]
            current = at + GATE_CELLS + (sequence & 1) * GATE_CELLS
            state = fn(cells[current : current + GATE_CELLS].tolist())
            if len(state) != GATE_CELLS:
                raise ValueError(f"{len(state)} cells for a stripe of {GATE_CELLS}")
            sequence = (sequence + 1) & 0xFFFF_FFFF_FFFF_FFFF
            for i, value in enumerate(state, at + GATE_CELLS + (sequence & 1) * GATE_CELLS):
                cells[i] = value
            cells[at] = sequence
        finally:
            locks.unlock(stripe)
        return True

    def stamp(self, stripe: int) -> int:
        """A number that changes with every update; one load. Raises IndexError past the last stripe."""
        return self._cells[self._at_of(stripe)]

    def read(self, stripe: int) -> list[int] | None:
        """A stripe's eight cells without its lock; None when they changed meanwhile: try again later."""
        at = self._at_of(stripe)
        cells = self._cells
        sequence = cells[at]
        current = at + GATE_CELLS + (sequence & 1) * GATE_CELLS
        state = cells[current : current + GATE_CELLS].tolist()
        # an update fills the other copy, so only the second one from here on touches what was read
        return state if cells[at] == sequence else None

    def _at_of(self, stripe: int) -> int:
        if not 0 <= stripe < self._count:
            raise IndexError(f"stripe {stripe} of {self._count}")
        return self._at + stripe * GATE_STRIPE_CELLS
