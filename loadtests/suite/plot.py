"""Lines over time as an SVG of its own, without script and without anything from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 52, 34
#: After Okabe and Ito, told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_STEPS = (1, 2, 2.5, 5, 10)
_MOST = 600


def chart(title: str, last: float, lines: Mapping[str, Points], limit: float | None = None) -> str:
    """One panel, from 0 to `last` seconds; `limit` is a dashed line that the values should keep on one side of."""
    drawn = {name: _thin(points) for name, points in lines.items() if points}
    if not drawn:
        return ""
    last = last or 1.0
    highest = max(value for points in drawn.values() for _, value in points)
    step = _step(max(highest, limit or 0.0, 1e-6) / 4)
    top = step * max(1, math.ceil(max(highest, limit or 0.0) / step - 1e-9))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="18" font-weight="bold" font-size="14">{escape(title)}</text>',
    ]

    def x(at_s: float) -> float:
        return _LEFT + at_s / last * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - min(value, top) / top * (_HEIGHT - _TOP - _BOTTOM)

    for i in range(round(top / step) + 1):
        level = y(i * step)
        parts.append(f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, level + 4, f"{i * step:,.10g}", "end"))
    unit, each = _unit(last)
    seconds = _step(last / each / 6) * each
    for i in range(int(last / seconds) + 1):
        parts.append(_text(x(i * seconds), _HEIGHT - 14, f"{i * seconds / each:g} {unit}", "middle"))
    at = float(_LEFT)
    for colour, (name, points) in zip(_COLOURS, drawn.items(), strict=False):
        path = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'
        )
        parts.append(f'<path d="M{at:.0f} 35h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{at + 23:.0f}" y="39">{escape(name)}</text>')
        at += 40 + 6.6 * len(name)
    if limit is not None:
        parts.append(
            f'<path d="M{_LEFT} {y(limit):.1f}H{_WIDTH - _RIGHT}" stroke="#000000" stroke-dasharray="6 4"/>'
        )
        parts.append(f'<path d="M{at:.0f} 35h18" stroke="#000000" stroke-dasharray="6 4"/>')
        parts.append(f'<text x="{at + 23:.0f}" y="39">SLO</text>')
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#555555">{escape(said)}</text>'


def _step(rough: float) -> float:
    """The round number next above."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))


def _unit(seconds: float) -> tuple[str, float]:
    return ("h", 3600.0) if seconds > 7200 else ("min", 60.0) if seconds > 240 else ("s", 1.0)


def _thin(points: Points) -> Points:
    every = math.ceil(len(points) / _MOST)
    return [*points[:-1:every], points[-1]]
