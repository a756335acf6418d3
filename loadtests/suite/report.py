"""A run as JSON, and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from .counts import OUTCOMES
from .plot import chart
from .run import Result

_STYLE = """
body{font:15px/1.45 sans-serif;color:#222;max-width:1160px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.15em;margin:1.6em 0 .5em}
p.about{color:#555;margin-top:.2em}
table{border-collapse:collapse}td,th{padding:.25em .9em .25em 0;text-align:left;border-bottom:1px solid #e2e2e2}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.met{color:#00704f}.missed{color:#b03000;font-weight:bold}
.verdict{display:inline-block;padding:.2em .8em;border-radius:.3em;color:#fff;font-weight:bold}
.verdict.met{background:#00805a;color:#fff}.verdict.missed{background:#b03000;color:#fff}
.charts{display:flex;flex-wrap:wrap;gap:1em}
"""


def as_json(result: Result) -> str:
    """All of it, points over time too."""
    order = asdict(result.order)
    order["haproxy"] = str(result.order.haproxy) if result.order.haproxy else None
    return json.dumps(
        {
            "met": result.met,
            "scale": scale(result),
            "order": order,
            "tool": result.tool,
            "began": result.began.isoformat(timespec="seconds"),
            "seconds": round(result.seconds, 3),
            "planned_requests": round(result.planned),
            "figures": result.figures.as_dict(),
            "slos": [asdict(line) for line in result.lines],
            "counts": result.counts,
            "corpus": result.corpus,
            "machine": result.machine,
            "series": {
                name: [[round(a, 2), round(b, 4)] for a, b in one] for name, one in result.series.items()
            },
        },
        indent=1,
        default=str,
    )


def scale(result: Result) -> str:
    """The factors of the full scenario."""
    return f"rate × {result.order.rate:g}, time × {result.order.time:g}"


def text(result: Result) -> str:
    """What the terminal is told."""
    width = max(len(line.name) for line in result.lines)
    lines = [f"{result.order.name} by {result.tool}: {result.about}", f"scale: {scale(result)}"]
    lines += [
        f"{'met   ' if line.met else 'MISSED'}  {line.name:<{width}}  {line.wanted:>12}  {line.measured}"
        for line in result.lines
    ]
    rate = result.figures.requests / max(0.001, result.figures.seconds)
    lines.append(
        f"{result.figures.requests:,} requests in {result.figures.seconds:.1f} s: {rate:,.0f} a second"
    )
    if result.figures.gave_way:
        lines.append(f"the climb ended at {result.figures.gave_way}")
    return "\n".join(lines)


def as_html(result: Result) -> str:
    """The page."""
    told, order = result.figures, result.order
    verdict = "met" if result.met else "missed"
    said = "every SLO is met" if result.met else "SLOs are missed"
    before = "HAProxy, " if order.haproxy else ""
    where = (
        f"{before}{order.gateways} gateway{'s' * (order.gateways > 1)} of {order.workers} "
        f"worker{'s' * (order.workers > 1)}, simulators, all on one machine"
    )
    facts = {
        "generator": result.tool,
        "before it": where,
        "scale": scale(result),
        "requests": f"{told.requests:,} in {told.seconds:.1f} s ({told.per_s:,.0f} a second)",
        **({"planned, without a climb": f"{result.planned:,.0f}"} if result.planned else {}),
        told.measures: f"p50 {told.p50_ms:.2f}, p95 {told.p95_ms:.2f}, p99 {told.p99_ms:.2f} ms",
        **({"the climb ended at": told.gave_way} if told.gave_way else {}),
        **{name.replace("_", " "): f"{value:,.2f}".removesuffix(".00") for name, value in told.more.items()},
        "corpus": ", ".join(f"{name} {value:,.10g}" for name, value in result.corpus.items()),
        "machine": f"{result.machine.get('cpu')}, cores {result.machine.get('cores')}, "
        f"Linux {result.machine.get('kernel')}, commit {result.machine.get('commit')}",
        "began": result.began.isoformat(sep=" ", timespec="seconds"),
    }
    of = result.series
    # a dashed line for what was judged, and for nothing else
    limit = order.limits.p95_ms if any(line.name.startswith("p95 ") for line in result.lines) else None
    judged = any(line.name.startswith("hit rate,") and line.wanted != "0 %" for line in result.lines)
    hits = 100 * order.limits.hits if judged and order.limits.hits is not None else None
    last = max((points[-1][0] for points in of.values()), default=1.0)
    charts = [
        chart("Requests a second", last, _some(of, "requests/s", "planned")),
        chart("Added by the gateway, ms", last, _some(of, "p50", "p95", "p99"), limit),
        chart("Hit rate, %", last, _some(of, "hit rate, %"), hits),
        chart("Processor time, cores", last, _some(of, "gateways, cores", "generator, cores")),
        chart("Not answered well, %", last, _some(of, "not answered well, %"), 100 * order.limits.failures),
    ]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(order.name)}: {said}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(order.name)} <span class='verdict {verdict}'>{said}</span></h1>",
            f"<p class='about'>{escape(result.about)}; here {escape(scale(result))}</p>",
            "<h2>SLOs</h2><table><tr><th></th><th>wanted</th><th>measured</th><th></th></tr>",
            *(
                f"<tr><td>{escape(line.name)}</td><td>{escape(line.wanted)}</td><td>{escape(line.measured)}</td>"
                f"<td class='{'met' if line.met else 'missed'}'>{'met' if line.met else 'missed'}</td></tr>"
                for line in result.lines
            ),
            "</table><h2>Over time, as the gateways counted</h2><div class='charts'>",
            *charts,
            "</div><h2>Answers</h2>",
            _answers(result),
            "<h2>The run</h2><table>",
            *(
                f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
                for name, value in facts.items()
            ),
            "</table></body></html>\n",
        ]
    )


def _answers(result: Result) -> str:
    sides: dict[str, Mapping[str, int]] = {side: counts for side, counts in result.counts.items() if counts}
    head = "".join(f"<th class='n'>{escape(side)}</th>" for side in sides)
    rows = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td class='n'>{counts.get(name, 0):,}</td>" for counts in sides.values())
        + "</tr>"
        for name in _outcomes(sides.values())
    )
    return f"<table><tr><th>x-penstock-cache</th>{head}</tr>{rows}</table>"


def _outcomes(sides: Any) -> Sequence[str]:
    return [name for name in OUTCOMES if any(counts.get(name) for counts in sides)]


def _some(
    series: Mapping[str, list[tuple[float, float]]], *names: str
) -> dict[str, list[tuple[float, float]]]:
    return {name: series[name] for name in names if name in series}
