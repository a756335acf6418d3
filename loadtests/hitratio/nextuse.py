"""When a key is asked for again: what only an offline policy can know."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

#: No further request.
NEVER = (1 << 63) - 1


def next_uses(keys: Sequence[int]) -> array[int]:
    """For each request the place of the next one for the same key, or NEVER."""
    found = array("Q", bytes(8 * len(keys)))
    later: dict[int, int] = {}
    for i in range(len(keys) - 1, -1, -1):
        found[i] = later.get(keys[i], NEVER)
        later[keys[i]] = i
    return found
