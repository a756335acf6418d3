"""How the breakers of backends stand, for whoever tells people: read from the gates at the moment of the question."""

from __future__ import annotations

from ..cache.gates import Gates
from ..cache.segment import Segment
from ..gateway.breaker import State

_NAMES = ("closed", "open", "half_open")


class BreakerView:
    """The controller's view; it moves none."""

    __slots__ = ("_count", "_gates")

    def __init__(self, segment: Segment) -> None:
        self._gates = Gates(segment)
        self._count = segment.geometry.gates

    def closed_ns(self, index: int, identity: int) -> int:
        """When it closed last, nanoseconds of the monotonic clock; 0: never, or it cannot be read."""
        state = self._state(index, identity)
        return 0 if state is None else state.closed_ns

    def phase(self, index: int, identity: int) -> str | None:
        """``closed``, ``open`` or ``half_open``; None while it cannot be read."""
        state = self._state(index, identity)
        return None if state is None else _NAMES[state.phase]

    def _state(self, index: int, identity: int) -> State | None:
        cells = self._gates.read(index) if index < self._count else None
        return None if cells is None else State(cells, identity)
