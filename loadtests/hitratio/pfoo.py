"""What no cache can exceed, whatever the sizes: PFOO-L, a bound on the misses from below, on the hits from above.

To have a hit, an entry must lie in the cache from one request for it to the next: size times requests passed. The
cache has capacity times requests to give. PFOO-L lets every hit have its cheapest room anywhere in time, so it may
only be too kind. Source: Berger, Beckmann, Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object
Sizes", POMACS 2(2), 2018, section 5.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .nextuse import NEVER


def most_hits(sizes: Sequence[int], next_use: Sequence[int], capacity: int) -> int:
    """How many hits no policy of `capacity` bytes can exceed.

    Where a key's size changes, an entry that stays is taken to have the least size it could have been stored with.
    """
    least = array("Q", sizes)
    costs = []
    for at, later in enumerate(next_use):
        if later == NEVER:
            continue
        least[later] = min(least[later], least[at])
        if least[at] <= capacity:
            costs.append(least[at] * (later - at))
    costs.sort()
    room = capacity * len(sizes)
    for hits, cost in enumerate(costs):
        if room <= 0:
            return hits
        room -= cost
    return len(costs)
