"""Affinity within bounds: the first of a list of preferences that is not over 1.25 times its share of the load.

Mirrokni, Thorup and Zadimoghaddam 2016. With few requests chance alone goes over that bound (of 16 requests, each at
one of four backends by a hash, one has six or more as a rule), and yielding then would lose what affinity is for while
no backend is busy. So a backend may have two and a half standard deviations above its share, as long as that is less
than the bound is at 25 requests a backend, and less than it is at half of what the backend is meant to take.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .least_connections import least_connections

BOUND = 1.25
#: From so many requests a backend on there is nothing but the bound: chance stays within it nine times in ten.
_MANY = 25.0
_DEVIATIONS = 2.5


def bounded_load(
    order: Sequence[int], loads: Sequence[float], weights: Sequence[float], rooms: Sequence[float], turn: int
) -> int:
    """The first index of ``order`` that stays within its bound with one request more.

    rooms: requests each backend is meant to take at one time. Where none stays within it, which takes a handful of
    requests or a load that is no whole number, the least loaded for its weight.
    """
    total = sum(loads) + 1.0
    heavy = sum(weights)
    count = len(weights)
    for index in order:
        share = total * weights[index] / heavy
        slack = min(share + _DEVIATIONS * sqrt(share), BOUND * _MANY * count * weights[index] / heavy)
        bound = max(BOUND * share, min(slack, BOUND * rooms[index] / 2.0))
        if loads[index] + 1.0 <= bound:
            return index
    return least_connections(loads, weights, turn)
