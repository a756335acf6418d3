"""What a generator says of its run, whichever it was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Figures:
    """Counts are of answers that came; times are in milliseconds.

    p95_ms: what the SLO is on, named by `measures`. outcomes: answers by `x-penstock-cache`, empty where the generator
    does not look. dropped: requests that the plan had and the generator did not get to; None where it has no plan.
    gave_way: the rate at which a climb until failure ended, None where there is none or it reached its end.
    """

    requests: int
    failed: int
    seconds: float
    measures: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    outcomes: dict[str, int] = field(default_factory=dict)
    dropped: int | None = None
    gave_way: str | None = None
    more: dict[str, float] = field(default_factory=dict)
    status: int = 0

    @property
    def hit_rate(self) -> float:
        """The share that the cache answered."""
        return (self.outcomes.get("HIT-L1", 0) + self.outcomes.get("HIT-L2", 0)) / max(1, self.requests)

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.requests / max(0.001, self.seconds)

    @property
    def failures(self) -> float:
        """The share that failed."""
        return self.failed / max(1, self.requests)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self) | {"hit_rate": self.hit_rate, "failures": self.failures}
