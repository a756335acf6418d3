"""Lowest latency times load: leaves a slow backend alone even when it looks idle (Finagle's Peak EWMA).

The latency is a moving average that rises at once to a peak and forgets it by time, half of it in about seven
seconds. What is remembered fades while nothing is heard, so a backend that was slow is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from .lightest import lightest

DECAY_S = 10.0


class Ewma:
    """One backend's latency as one worker sees it (s); 0 until something was heard of it."""

    __slots__ = ("_at", "_cost")

    def __init__(self) -> None:
        self._cost = 0.0
        self._at = 0.0

    def observe(self, took_s: float, now_s: float) -> None:
        """An attempt that went well began to be answered after ``took_s``."""
        old = self._cost
        if took_s >= self.cost(now_s):
            self._cost = took_s
        else:
            keep = exp((self._at - now_s) / DECAY_S)
            self._cost = old * keep + took_s * (1.0 - keep)
        self._at = now_s

    def failed(self, took_s: float, now_s: float) -> None:
        """An attempt failed after ``took_s``: that may be a peak, but a quick failure is no quick answer."""
        if took_s > self.cost(now_s):
            self.observe(took_s, now_s)

    def cost(self, now_s: float) -> float:
        """The average as it has faded by now."""
        return self._cost * exp((self._at - now_s) / DECAY_S)


def peak_ewma(costs: Sequence[float], loads: Sequence[float], weights: Sequence[float], turn: int) -> int:
    """The index of the lowest latency times load over weight; ties rotate. Lengths are equal, not 0.

    A backend of which nothing is known (0) counts as quick as the quickest, so a new one is tried without a rush.
    """
    known = min((cost for cost in costs if cost > 0.0), default=1.0)
    scores = [
        (cost or known) * (load + 1) / weight
        for cost, load, weight in zip(costs, loads, weights, strict=True)
    ]
    return lightest(scores, turn)
