"""When a drain is over: quiet has to be seen twice, and not too early.

A request takes its place before it reads the pool's state, and the state is stored before the places are summed; so a
request that read the old state is in the sum of any look that begins `SETTLE_S` after the new one was shown.
"""

from __future__ import annotations

SETTLE_S = 0.1
LOOK_S = 0.02  # between two looks, as far as `due` is concerned: any later look counts


class Settling:
    """One drain's looks. shown: when the state that holds requests back was."""

    __slots__ = ("_from", "_quiet")

    def __init__(self, shown: float) -> None:
        self._from = shown + SETTLE_S
        self._quiet: float | None = None

    def look(self, quiet: bool, now: float) -> bool:
        """Take one look; whether this is the second quiet one in a row."""
        if not quiet or now < self._from:
            self._quiet = None
            return False
        if self._quiet is None:
            self._quiet = now
            return False
        return now > self._quiet

    @property
    def due(self) -> float:
        """When the next look is worth while."""
        return self._from if self._quiet is None else self._quiet + LOOK_S
