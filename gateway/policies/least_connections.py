"""The backend with the fewest requests in flight for its weight; equals take turns.

Pure: loads and the turn are arguments. The request to be placed counts in its own favour, ``(n + 1) / weight``,
so that an idle backend of weight 2 is preferred to an idle one of weight 1 (HAProxy's ``leastconn`` does the same).
"""

from __future__ import annotations

from collections.abc import Sequence

from .lightest import lightest


def least_connections(inflight: Sequence[float], weights: Sequence[float], turn: int) -> int:
    """The index of the least loaded; ``turn`` is any growing number, it rotates ties. Lengths are equal, not 0."""
    return lightest([(n + 1) / w for n, w in zip(inflight, weights)], turn)  # noqa: B905 (200 ns)
