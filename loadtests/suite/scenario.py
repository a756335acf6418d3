"""The scenarios, as `k6/scenarios.json` has them for every generator: rates over time, and how they are scaled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "k6" / "scenarios.json"


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a scenario: ``points`` are (seconds since its start, requests a second), straight lines between.

    until_failure: it goes on until an SLO is missed; where, is a finding and no fault.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    until_failure: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.points[-1][0]

    @property
    def peak(self) -> float:
        """Its highest rate."""
        return max(rate for _, rate in self.points)

    @property
    def requests(self) -> float:
        """How many requests that makes."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)

    def rate(self, at_s: float) -> float:
        """Requests a second at a time since its start; 0 outside."""
        for (t0, r0), (t1, r1) in zip(self.points, self.points[1:], strict=False):
            if t0 <= at_s < t1:
                return r0 + (r1 - r0) * (at_s - t0) / (t1 - t0)
        return 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load: its phases come one after another."""

    name: str
    about: str
    cache: bool
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """How long all of it lasts."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak(self) -> float:
        """Its highest rate."""
        return max(phase.peak for phase in self.phases)

    @property
    def requests(self) -> float:
        """How many requests it makes."""
        return sum(phase.requests for phase in self.phases)

    def rate(self, at_s: float) -> float:
        """Requests a second at a time since its start; 0 outside."""
        for phase in self.phases:
            if at_s < phase.seconds:
                return phase.rate(at_s)
            at_s -= phase.seconds
        return 0.0


def without_climb(scenario: Scenario) -> Scenario:
    """The scenario as far as its rates are planned: for generators that cannot tell when to give a climb up."""
    return replace(scenario, phases=tuple(phase for phase in scenario.phases if not phase.until_failure))


def scenarios(rate: float = 1.0, time: float = 1.0, file: Path = FILE) -> dict[str, Scenario]:
    """All of them by name, their rates times `rate` and their lengths times `time`."""
    loaded: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return {
        name: Scenario(
            name,
            one["about"],
            one["cache"],
            tuple(
                Phase(
                    phase["name"],
                    _points(
                        phase["start"] * rate,
                        [(s["seconds"] * time, s["rate"] * rate) for s in phase["stages"]]
                        * phase.get("repeat", 1),
                    ),
                    phase.get("until_failure", False),
                )
                for phase in one["phases"]
            ),
        )
        for name, one in loaded.items()
    }


def _points(start: float, stages: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    points, at_s = [(0.0, start)], 0.0
    for seconds, rate in stages:
        at_s += seconds
        points.append((at_s, rate))
    return tuple(points)
