"""The less loaded of two that are drawn (Mitzenmacher 2001): nearly as even as the least of all, and looks at two.

Drawn by weight, without putting back, so that a heavy backend is not held down by being drawn as seldom as a light one.
"""

from __future__ import annotations

from collections.abc import Sequence


def pair(weights: Sequence[float], first: float, second: float) -> tuple[int, int]:
    """Two different indices by two random numbers in [0, 1). Two weights at least."""
    one = _drawn(weights, -1, sum(weights) * first)
    other = _drawn(weights, one, (sum(weights) - weights[one]) * second)
    return one, other


def power_of_two(loads: tuple[float, float], weights: tuple[float, float]) -> int:
    """Which of the two is less loaded for its weight: 0 or 1. Of equals the one drawn first."""
    return int((loads[1] + 1) / weights[1] < (loads[0] + 1) / weights[0])


def _drawn(weights: Sequence[float], without: int, at: float) -> int:
    last = 0
    for index, weight in enumerate(weights):
        if index != without:
            last = index
            at -= weight
            if at < 0:
                break
    return last  # the last one where rounding leaves a rest
