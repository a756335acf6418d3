"""wrk, a constant rate, hey, ab and h2load: the scripts in `wrk/`, and what their output says.

Strategy: pure functions from text to figures, one for each tool. None of them looks at `x-penstock-cache`; what the
cache did, the gateway's own counts say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures import Figures

SCRIPTS = Path(__file__).resolve().parent.parent / "wrk"


class PlainError(Exception):
    """The output is not what this tool says; the text is one line."""


@dataclass(frozen=True, slots=True)
class Plain:
    """One script. rps: its constant rate when it is scaled by 1; 0: it sends as fast as answers come."""

    name: str
    about: str
    rps: int = 0
    connections: int = 64
    seconds: int = 60


PLAIN = {
    one.name: one
    for one in (
        Plain("wrk", "the corpus, as fast as answers come: 64 connections for a minute"),
        Plain("constant", "10,000 requests a second for a minute, by wrk2 or h2load", rps=10_000),
        Plain("hey", "one question, as fast as answers come: 64 connections for a minute"),
        Plain("ab", "one question, as fast as answers come: 64 connections for a minute"),
        Plain("h2load", "one question, as fast as answers come: 64 connections for a minute"),
    )
}


def figures(name: str, said: str, log: Path, status: int) -> Figures:
    """What the script's output says. Raises PlainError."""
    if "@@{" in said:
        name = "wrk"
    reads: dict[str, Callable[[str, Path], Figures]] = {
        "wrk": _wrk,
        "hey": _hey,
        "ab": _ab,
        "h2load": _h2load,
        "constant": _h2load,
    }
    try:
        found = reads[name](said, log)
    except (AttributeError, ValueError, KeyError, IndexError, OSError, ZeroDivisionError):
        raise PlainError(f"{name} did not say what it says: {said[-300:]!r}") from None
    found.status = status
    return found


def _wrk(said: str, log: Path) -> Figures:
    line = [line for line in said.splitlines() if line.startswith("@@")][-1]
    one = json.loads(line[2:])
    return Figures(
        requests=one["requests"],
        failed=one["failed"],
        seconds=one["seconds"],
        measures="answer, whole",
        **{key: one[key] for key in ("p50_ms", "p95_ms", "p99_ms")},
    )


def _hey(said: str, log: Path) -> Figures:
    answers = {int(status): int(n) for status, n in re.findall(r"\[(\d{3})\]\s+(\d+) responses", said)}
    errors = sum(
        int(n) for n in re.findall(r"^\s*\[(\d+)\]\s+\D", said.partition("Error distribution")[2], re.M)
    )
    at = {int(p): float(s) for p, s in re.findall(r"(\d+)%+ in ([\d.]+) secs", said)}
    seconds = float(_found(r"Total:\s+([\d.]+) secs", said))
    good = sum(n for status, n in answers.items() if 200 <= status < 300)
    requests = sum(answers.values()) + errors
    return _of(requests, requests - good, seconds, [1000 * at[p] for p in (50, 95, 99)])


def _ab(said: str, log: Path) -> Figures:
    requests = int(_found(r"Complete requests:\s+(\d+)", said))
    failed = int(_found(r"Failed requests:\s+(\d+)", said))
    other = re.search(r"Non-2xx responses:\s+(\d+)", said)
    at = {int(p): float(ms) for p, ms in re.findall(r"^\s+(\d+)%\s+(\d+)", said, re.M)}
    seconds = float(_found(r"Time taken for tests:\s+([\d.]+) seconds", said))
    return _of(requests, failed + int(other[1] if other else 0), seconds, [at[p] for p in (50, 95, 99)])


def _h2load(said: str, log: Path) -> Figures:
    seconds = float(_found(r"finished in ([\d.]+)s", said))
    of = {what: int(n) for n, what in re.findall(r"(\d+) (total|done|succeeded|failed|errored)", said)}
    durations = sorted(int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines() if line)
    at = [durations[min(len(durations) - 1, int(p * len(durations)))] for p in (0.5, 0.95, 0.99)]
    return _of(of["done"], of["done"] - of["succeeded"], seconds, at)


def _of(requests: int, failed: int, seconds: float, at_ms: Sequence[float]) -> Figures:
    p50, p95, p99 = at_ms
    return Figures(requests, failed, seconds, "answer, whole", p50, p95, p99)


def _found(pattern: str, said: str) -> str:
    match = re.search(pattern, said)
    if match is None:
        raise ValueError(pattern)
    return match[1]
