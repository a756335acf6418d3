"""The bench's findings as a table for people and a file for machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .context import Book

_COLUMNS = (
    ("per_s", "per s"),
    ("cpu_us", "cpu us"),
    ("p50_us", "p50 us"),
    ("p95_us", "p95 us"),
    ("p99_us", "p99 us"),
    ("max_us", "max us"),
    ("rss_kib", "RSS KiB"),
    ("kib_each", "KiB each"),
    ("lag_ms", "lag ms"),
)
_REFERENCES = ("echo", "direct", "vllm-router")


def table(book: Book) -> str:
    """Return medians over the rounds, ratios within the rounds, goals, notes and faults."""
    lines = [f"{'':9}{'':34}" + "".join(f"{title:>10}" for _, title in _COLUMNS)]
    for scenario, subject in dict.fromkeys((s.scenario, s.subject) for s in book.samples):
        cells = [
            _cell(book.of(scenario, subject, figure), book, scenario, subject, figure)
            for figure, _ in _COLUMNS
        ]
        lines.append(f"{scenario:9}{subject:34}" + "".join(f"{cell:>10}" for cell in cells))
    lines += ["", *(f"{name:45} {value:.3f}" for name, value in ratios(book).items())]
    lines.append("")
    for goal in book.goals:
        lines.append(f"{'met ' if goal.met else 'MISS'} {goal.name:60} {goal.found:>12g}  ({goal.bound})")
    lines += [f"note  {note}" for note in book.notes]
    lines += [f"FAULT {fault}" for fault in book.faults]
    lines += [f"\n{page}" for page in book.pages]
    return "\n".join(lines)


def ratios(book: Book) -> dict[str, float]:
    """Return what the gateway's rate is of each reference's, in every scenario that has both."""
    found = {}
    for scenario in dict.fromkeys(s.scenario for s in book.samples):
        for other in _REFERENCES:
            ratio = book.ratio(scenario, "gateway", other)
            if ratio:
                found[f"{scenario}: gateway / {other}"] = round(ratio, 4)
    return found


def write(book: Book, file: Path, machine: dict[str, object], options: dict[str, object]) -> None:
    """Write everything, each sample included, as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for sample in book.samples:
        found = figures.setdefault(sample.scenario, {}).setdefault(sample.subject, {})
        for figure in sample.figures:
            found[figure] = book.median(sample.scenario, sample.subject, figure)
    content = {
        "machine": machine,
        "options": options,
        "processes": book.layout,
        "medians": figures,
        "ratios": ratios(book),
        "goals": [asdict(goal) for goal in book.goals],
        "faults": book.faults,
        "notes": book.notes,
        "pages": book.pages,
        "samples": [asdict(sample) for sample in book.samples],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def _cell(found: list[float], book: Book, scenario: str, subject: str, figure: str) -> str:
    if not found:
        return ""
    value = book.median(scenario, subject, figure)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
