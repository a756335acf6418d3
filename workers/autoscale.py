"""Should there be more gateways, or fewer? A pure rule over what one of them saw in the last minute.

One more when any of the three is over its upper edge, one fewer when all are under their lower ones, and 5 minutes
between two decisions. A decision is shown for a minute, so that whoever scales by it sees it whatever his rhythm, and
must act once within these 5 minutes (`docs/monitoring.md` has the HorizontalPodAutoscaler). Who begins has just
decided: a controller that is started anew does not shorten the 5 minutes. Knows no clock and no metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

UP_CPU, UP_RPS, UP_P95_S = 0.70, 8_000.0, 0.004
DOWN_CPU, DOWN_RPS, DOWN_P95_S = 0.30, 3_000.0, 0.002
BETWEEN_S = 300.0
SHOWN_S = 60.0


class Direction(IntEnum):
    """Where the number of gateways should go."""

    DOWN = -1
    HOLD = 0
    UP = 1


#: What a HorizontalPodAutoscaler with the target 1 makes of it (its tolerance is 0.1).
SIGNAL = {Direction.DOWN: 0.5, Direction.HOLD: 1.0, Direction.UP: 2.0}


@dataclass(frozen=True, slots=True)
class Seen:
    """One gateway's last minute: part of its cores used (0 to 1), requests a second, p95 of what it added."""

    cpu: float
    rps: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Scale:
    """What is said now, and when the last decision was made (s)."""

    decided_s: float
    direction: Direction = Direction.HOLD


def wanted(seen: Seen) -> Direction:
    """The rule without its memory. The edges themselves change nothing."""
    if seen.cpu > UP_CPU or seen.rps > UP_RPS or seen.p95_s > UP_P95_S:
        return Direction.UP
    if seen.cpu < DOWN_CPU and seen.rps < DOWN_RPS and seen.p95_s < DOWN_P95_S:
        return Direction.DOWN
    return Direction.HOLD


def step(scale: Scale, seen: Seen, now_s: float) -> Scale:
    """What is said from now on."""
    since = now_s - scale.decided_s
    if since < BETWEEN_S:
        return scale if since < SHOWN_S else Scale(scale.decided_s)
    direction = wanted(seen)
    return Scale(now_s, direction) if direction is not Direction.HOLD else Scale(scale.decided_s)


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float:
    """The quantile in a histogram's counts, one more than it has bounds, as Prometheus estimates it; 0.0 of nothing."""
    total = sum(counts)
    if not total:
        return 0.0
    rank = q * total
    for at, reached in enumerate(accumulate(counts)):
        if reached >= rank:
            if at == len(bounds):
                break
            below = bounds[at - 1] if at else 0.0
            return below + (bounds[at] - below) * (rank - reached + counts[at]) / counts[at]
    return bounds[-1]
