"""What a gateway has counted of a load: answers by cache outcome and status, and a histogram of what it added.

Pure: differences between scrapes. Refuses to know when they are made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..bench.rig.exposition import Exposition

REQUESTS = "penstock_requests_total"
ADDED = "penstock_added_latency_seconds"
ENDPOINT = "/v1/chat/completions"
HITS = ("HIT-L1", "HIT-L2")
OUTCOMES = (*HITS, "COALESCED", "MISS", "BYPASS")

_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(slots=True)
class Counts:
    """Sums over gateways. ``below``: cumulative counts by upper bound in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    below: Counter[float] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Those whose true status is no 2xx."""
        return sum(count for status, count in self.statuses.items() if not status.startswith("2"))

    @property
    def hit_rate(self) -> float:
        """The share that the cache answered."""
        return sum(self.outcomes[name] for name in HITS) / max(1, self.requests)

    def quantile_ms(self, share: float) -> float:
        """What so large a share of the added times is below, straight within a bucket; 0 when there are none."""
        bounds = sorted(self.below)
        wanted, low, under = share * (self.below[bounds[-1]] if bounds else 0), 0.0, 0.0
        if not wanted:
            return 0.0
        for bound in bounds:
            if self.below[bound] >= wanted:
                if bound == float("inf"):
                    break
                inside = (wanted - under) / max(1e-9, self.below[bound] - under)
                return 1000 * (low + (bound - low) * inside)
            low, under = bound, self.below[bound]
        return 1000 * low

    def since(self, before: Counts) -> Counts:
        """What came after."""
        return Counts(
            Counter({k: n - before.outcomes[k] for k, n in self.outcomes.items()}),
            Counter({k: n - before.statuses[k] for k, n in self.statuses.items()}),
            Counter({k: n - before.below[k] for k, n in self.below.items()}),
        )


def counted(pages: Iterable[Exposition]) -> Counts:
    """The counts on the gateways' pages, together."""
    found = Counts()
    for page in pages:
        for name, labels, value in page.samples:
            if name == REQUESTS:
                of = dict(_LABEL.findall(labels))
                if of.get("endpoint") != ENDPOINT:  # a balancer asks for /ready
                    continue
                found.outcomes[of.get("cache", "")] += round(value)
                found.statuses[of.get("status", "")] += round(value)
        for bound, value in page.buckets(ADDED).items():
            found.below[bound] += round(value)
    return found
