"""Which backends may be chosen from: tiers by priority, the own zone first in each, spilling over from what is full.

Pure: a backend's place is a number (:func:`rank`), lower first.
"""

from __future__ import annotations

from collections.abc import Sequence


def rank(priority: int, zone: str | None, own: str | None) -> int:
    """Where a backend comes: by priority, then those of the own zone; no zone, here or there, is every zone."""
    return 2 * priority + (zone is not None and own is not None and zone != own)


def eligible(ranks: Sequence[int], inflight: Sequence[int], limits: Sequence[int]) -> list[int]:
    """The indices of the lowest rank that has a backend with room, those with room; not empty.

    limits: requests at one time, 0 for no limit. Where all are full, the one that is least over its limit.
    """
    room = [i for i, limit in enumerate(limits) if not limit or inflight[i] < limit]
    if not room:
        return [min(range(len(limits)), key=lambda i: ((inflight[i] + 1) / limits[i], ranks[i]))]
    lowest = min(ranks[i] for i in room)
    return [i for i in room if ranks[i] == lowest]
