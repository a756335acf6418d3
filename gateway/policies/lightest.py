"""The least of some numbers; equals take turns."""

from __future__ import annotations

from collections.abc import Sequence


def lightest(scores: Sequence[float], turn: int) -> int:
    """The index of the least; of n equal ones each gets every n-th ``turn``, wherever they stand. Not empty."""
    least = min(scores)
    equal = scores.count(least)
    at = scores.index(least)
    if equal > 1:
        for _ in range(turn % equal):
            at = scores.index(least, at + 1)
    return at
