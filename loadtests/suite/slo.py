"""The SLOs of a load, each with what was measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .counts import OUTCOMES, Counts
from .figures import Figures


@dataclass(frozen=True, slots=True)
class Limits:
    """What is demanded: milliseconds and shares. hits None: no hit rate is, as where one question is asked alone."""

    p95_ms: float = 5.0
    failures: float = 0.001
    hits: float | None = 0.4
    generator_cpu: float = 0.8
    apart: float = 0.001


@dataclass(frozen=True, slots=True)
class Line:
    """One SLO."""

    name: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Ran:
    """A run to judge. gateway: what the gateways counted; judged: without a climb until
    failure, which may fail; generator_cpu: the share of its cores that it used;
    cut: as many answers, at most, the generator may have cut off at the end; None: its counts are not compared.
    """

    figures: Figures
    gateway: Counts
    judged: Counts
    generator_cpu: float
    cut: int | None
    cache: bool = True


def judge(ran: Ran, limits: Limits) -> list[Line]:
    """Every SLO that this run has; one whose limit is endless it has not."""
    told, seen = ran.figures, ran.gateway
    lines = []
    if math.isfinite(limits.p95_ms):
        wanted = f"< {limits.p95_ms:g} ms"
        met = told.p95_ms < limits.p95_ms
        lines.append(Line(f"p95 ({told.measures})", wanted, f"{told.p95_ms:.2f} ms", met))
    lines += [
        _below("failures, by the generator", told.failures, limits.failures),
        _below("failures, by the gateway", ran.judged.failed / max(1, ran.judged.requests), limits.failures),
        Line("requests", "> 0", f"{told.requests:,}", told.requests > 0),
    ]
    if told.dropped is not None:
        lines.append(Line("dropped iterations", "0", f"{told.dropped:,}", told.dropped == 0))
    if not ran.cache:
        lines.append(Line("hit rate, by the gateway", "0 %", _percent(seen.hit_rate), seen.hit_rate == 0))
    elif limits.hits is not None:
        wanted = f"≥ {100 * limits.hits:g} %"
        lines.append(
            Line("hit rate, by the gateway", wanted, _percent(seen.hit_rate), seen.hit_rate >= limits.hits)
        )
        if told.outcomes:
            lines.append(
                Line(
                    "hit rate, by the generator",
                    wanted,
                    _percent(told.hit_rate),
                    told.hit_rate >= limits.hits,
                )
            )
    if told.outcomes:
        apart = round(abs(told.hit_rate - seen.hit_rate), 9)
        lines.append(
            Line(
                "hit rates apart",
                f"≤ {100 * limits.apart:g} points",
                f"{100 * apart:.3f} points",
                apart <= limits.apart,
            )
        )
    if ran.cut is not None:
        lines.append(_agreed(told, seen, ran.cut))
    if math.isfinite(limits.generator_cpu):
        lines.append(_below("the generator's processor", ran.generator_cpu, limits.generator_cpu))
    lines.append(Line("the generator's exit status", "0", str(told.status), told.status == 0))
    return lines


def _below(name: str, share: float, limit: float) -> Line:
    return Line(name, f"< {100 * limit:g} %", _percent(share), share < limit)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _agreed(told: Figures, seen: Counts, cut: int) -> Line:
    pairs = {name: (told.outcomes.get(name, 0), seen.outcomes[name]) for name in OUTCOMES}
    pairs["all"] = (told.requests, seen.requests)
    differ = [f"{name} {a:,}/{b:,}" for name, (a, b) in pairs.items() if a != b]
    met = not differ or all(a <= b <= a + cut for a, b in pairs.values())
    wanted = f"at most {cut:,} cut off" if cut else "equal"
    return Line("answers, generator/gateway", wanted, ", ".join(differ) or f"{seen.requests:,} equal", met)
