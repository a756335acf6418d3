"""What happened between two samples of one gateway: rates, and quantiles of what was measured meanwhile. Pure.

A counter that is lower than before has begun anew: all that it has is new.
"""

from __future__ import annotations

from itertools import pairwise

from ..autoscale import quantile
from .sample import Sample


class Change:
    """From `then` to `now`; `then` is None for the first sample of a gateway, and nothing is known of a rate."""

    def __init__(self, now: Sample, then: Sample | None) -> None:
        self.now = now
        self._then = then if then is not None and then.life == now.life and then.at_s < now.at_s else None

    @property
    def over_s(self) -> float | None:
        """How far apart they are; None where there is nothing to compare with."""
        return self.now.at_s - self._then.at_s if self._then is not None else None

    def rate(self, name: str, **labels: str) -> float | None:
        """What was added to a counter a second, over all of its series that have these labels."""
        by = self.rates("", name, **labels)
        return by.get("", 0.0) if by is not None else None

    def rates(self, label: str, name: str, **labels: str) -> dict[str, float] | None:
        """The same by the values of one label."""
        added = self._added(label, name, **labels)
        return (
            {key: n / self.over_s for key, n in added.items()} if added is not None and self.over_s else None
        )

    def quantiles(self, qs: tuple[float, ...], family: str, **labels: str) -> list[float | None]:
        """Of a histogram's observations since `then`, all of its series together; None where there were none."""
        added = self._added("le", f"{family}_bucket", **labels) or {}
        upto = sorted((float(bound), n) for bound, n in added.items())
        counts = [round(after - before) for (_, before), (_, after) in pairwise([(0.0, 0.0), *upto])]
        if not sum(counts):
            return [None] * len(qs)
        return [quantile(q, [bound for bound, _ in upto[:-1]], counts) for q in qs]

    def _added(self, label: str, name: str, **labels: str) -> dict[str, float] | None:
        if self._then is None:
            return None
        before = {tuple(sorted(has.items())): value for has, value in self._then.each(name, **labels)}
        added: dict[str, float] = {}
        for has, value in self.now.each(name, **labels):
            past = before.get(tuple(sorted(has.items())), 0.0)
            key = has.get(label, "")
            added[key] = added.get(key, 0.0) + (value - past if value >= past else value)
        return added
