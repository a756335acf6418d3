"""Which backend a key belongs to, and who comes next: weighted rendezvous hashing (Thaler and Ravishankar 1998).

Each backend draws a number from the key and its own name, an exponential one whose rate is its weight; the least
wins. So each gets keys by its weight, and when one leaves, only its own keys move, to the others by their weights. No
state, the same on every worker and node.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import xxhash

_SCALE = 2.0**-64
_hash = xxhash.xxh3_64_intdigest


def rendezvous(key: bytes, seeds: Sequence[int], weights: Sequence[float]) -> list[int]:
    """All indices, the owner first. ``seeds``: 64 bits that stand for each backend, the same wherever it is known."""
    draws = [
        -log((_hash(key, seed) + 0.5) * _SCALE) / weight for seed, weight in zip(seeds, weights, strict=True)
    ]
    return sorted(range(len(draws)), key=draws.__getitem__)
