"""The rows as a drawing: one panel a trace, hit ratio over cache size, one line a policy. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .lab import BOUND, LRU, REACHED, Row

_COLUMNS = 3
_WIDTH, _HEIGHT = 400, 290  # of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 34, 40
_HEAD = 64

#: name -> colour, width, dashes. Colours after Okabe and Ito, told apart by colour-blind readers too.
_STYLES = {
    BOUND: ("#999999", 1.5, "2 3"),
    REACHED: ("#000000", 1.2, "6 3"),
    "s3-fifo": ("#009e73", 1.5, ""),
    "sieve": ("#e69f00", 1.5, ""),
}
# Often on one another: the thin one is drawn upon the thick ones.
_LRU_STYLE = ("#0072b2", 1.2, "")
_L1_STYLES = (("#d55e00", 3.4, ""), ("#cc79a7", 2.0, "8 3"), ("#56b4e9", 2.0, "8 3"))


def svg(rows: Sequence[Row], l1s: Sequence[str]) -> str:
    """All rows in one picture; `l1s`: the names of L1's figures."""
    styles = {
        **_STYLES,
        **{name: _L1_STYLES[i % len(_L1_STYLES)] for i, name in enumerate(l1s)},
        LRU: _LRU_STYLE,
    }
    traces = list(dict.fromkeys(row.trace for row in rows))
    columns = min(_COLUMNS, len(traces))
    width, height = columns * _WIDTH, _HEAD + math.ceil(len(traces) / columns) * _HEIGHT
    width = max(width, 110 * len(styles) + 20)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="24" font-size="16" font-weight="bold">Hit ratio over cache size</text>',
    ]
    for i, (name, style) in enumerate(styles.items()):
        x = 16 + i * 110
        parts.append(_line([(x, 44), (x + 26, 44)], style))
        parts.append(f'<text x="{x + 32}" y="48">{escape(name)}</text>')
    for i, trace in enumerate(traces):
        panel = _panel(trace, [row for row in rows if row.trace == trace], styles)
        x, y = i % columns * _WIDTH, _HEAD + i // columns * _HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{panel}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(trace: str, rows: Sequence[Row], styles: dict[str, tuple[str, float, str]]) -> str:
    rows = sorted(rows, key=lambda row: row.fraction)
    low, high = math.log(rows[0].fraction), math.log(rows[-1].fraction)
    top = max(max(row.ratios.values()) for row in rows)
    step = next(s for s in (0.05, 0.1, 0.2) if top <= 5 * s or s == 0.2)
    top = max(step, math.ceil(top / step) * step)

    def x(fraction: float) -> float:
        share = (math.log(fraction) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(ratio: float) -> float:
        return _HEIGHT - _BOTTOM - ratio / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="22" font-weight="bold">{escape(trace)}</text>']
    for i in range(round(top / step) + 1):
        level = y(i * step)
        parts.append(f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end" fill="#555555">{100 * i * step:.0f} %</text>'
        )
    for row in rows:
        label = f"{100 * row.fraction:g} %"
        parts.append(
            f'<text x="{x(row.fraction):.1f}" y="{_HEIGHT - 22}" text-anchor="middle" fill="#555555">{label}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle" fill="#555555">'
        "cache size, share of the working set</text>"
    )
    for name, style in styles.items():
        points = [(x(row.fraction), y(row.ratios[name])) for row in rows if name in row.ratios]
        if points:
            parts.append(_line(points, style))
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{style[1]:g}" fill="{style[0]}"/>' for a, b in points
            ]
    return "\n".join(parts)


def _line(points: Sequence[tuple[float, float]], style: tuple[str, float, str]) -> str:
    colour, width, dashes = style
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"{dash}/>'
