"""What an L1 has done, in plain numbers that its owner reads and sends where counters go."""

from __future__ import annotations


class Counts:
    """Numbers since this object was made, by one process.

    stored: entries put, `replaced` of them over one with the same key. evicted: living entries dropped to make room,
    in a segment or in a full set of the index. expired: dropped because their time was over. carried: kept because
    they had been read. skipped: not stored, because no segment was to be had at that moment. too_large: not stored,
    because larger than an entry may be.
    """

    __slots__ = ("carried", "evicted", "expired", "replaced", "skipped", "stored", "too_large")

    def __init__(self) -> None:
        self.stored = 0
        self.replaced = 0
        self.evicted = 0
        self.expired = 0
        self.carried = 0
        self.skipped = 0
        self.too_large = 0
