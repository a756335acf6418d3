"""Locust for one scenario: a master and its workers, how they are started, and what the summary says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .figures import Figures

FILE = Path(__file__).resolve().parent.parent / "locust" / "locustfile.py"


def commands(workers: int, port: int) -> list[list[str]]:
    """Start it so: one process, or a master on a port of loopback and as many workers. The first one's end counts."""
    base = [sys.executable, "-m", "locust", "-f", str(FILE), "--loglevel", "WARNING"]
    head = ["--headless", "--only-summary", "--stop-timeout", "20"]
    if workers < 2:
        return [[*base, *head]]
    master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)]
    joined = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
    wait = ["--expect-workers", str(workers), "--expect-workers-max-wait", "60"]
    return [[*base, *head, *master, *wait], *([*base, *joined] for _ in range(workers))]


def figures(summary: Path, status: int) -> Figures:
    """What the summary says. Raises OSError or ValueError where there is none."""
    data = json.loads(summary.read_text())
    asked, gaps = data["asked"], data["gaps"]
    return Figures(
        requests=asked["count"],
        failed=asked["failed"],
        seconds=data["seconds"],
        measures="time to first byte",
        p50_ms=data["first"]["p50_ms"],
        p95_ms=data["first"]["p95_ms"],
        p99_ms=data["first"]["p99_ms"],
        outcomes=data["outcomes"],
        more={
            "answer_p95_ms": asked["p95_ms"],
            "ttft_p50_ms": data["ttft"]["p50_ms"],
            "ttft_p95_ms": data["ttft"]["p95_ms"],
            "ttft_p99_ms": data["ttft"]["p99_ms"],
            "inter_token_p50_ms": gaps["p50_ms"],
            "inter_token_p95_ms": gaps["p95_ms"],
            "inter_token_p99_ms": gaps["p99_ms"],
            "streams": data["ttft"]["count"],
            "workers": data["workers"],
        },
        status=status,
    )
