"""Prefix cache: which KV blocks are still warm, least recently used first out.

Pure bookkeeping over block hashes (tokens.block_hashes). Refuses to know about time and sequences.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """At most `capacity` block hashes; counts queried and hit blocks as vLLM counts tokens."""

    def __init__(self, capacity: int) -> None:
        self._capacity = max(0, capacity)
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks are cached; those are freshened."""
        for n, block in enumerate(hashes):
            if block not in self._blocks:
                return n
            self._blocks.move_to_end(block)
        return len(hashes)

    def insert(self, hashes: Sequence[bytes]) -> None:
        """Remembers the blocks of a finished prefill, evicting the oldest beyond the capacity."""
        for block in hashes:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything (vLLM's /reset_prefix_cache, and any sleep)."""
        self._blocks.clear()

    def __len__(self) -> int:
        return len(self._blocks)
