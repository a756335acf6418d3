"""In turn, by weight, and smoothly: weights 5, 1, 1 give a a b a c a a, not a a a a a b c (nginx's algorithm).

Each backend has a credit. A choice gives each its weight, takes the one with the most, and takes the sum of all
weights from that one; so credits add up to what they were, and over any stretch each has had its share within one.
"""

from __future__ import annotations

from collections.abc import Sequence


def weighted_round_robin(credits: Sequence[float], weights: Sequence[float]) -> tuple[int, list[float]]:
    """The index of who is next and everybody's credit after it. Lengths are equal, not 0."""
    after = [credit + weight for credit, weight in zip(credits, weights, strict=True)]
    chosen = after.index(max(after))
    after[chosen] -= sum(weights)
    return chosen, after
