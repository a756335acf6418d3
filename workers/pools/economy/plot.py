"""The outcomes as a drawing: what each idle timeout costs, and how long requests wait with it. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from .simulate import Outcome

_WIDTH, _HEIGHT = 460, 320  # of one panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 58, 46
_HEAD = 34

# Colours after Okabe and Ito, told apart by colour-blind readers too; with dashes for those who see none.
_USED, _ALWAYS = ("used", "#0072b2", ""), ("always on", "#999999", "6 3")
_WAITS = (("p50", "#009e73", "", 0.5), ("p95", "#e69f00", "8 3", 0.95), ("p99", "#d55e00", "2 3", 0.99))

Line = tuple[str, str, str, Sequence[float]]


def svg(title: str, outcomes: Sequence[tuple[float, Outcome]]) -> str:
    """One picture of two panels; outcomes: (idle timeout in seconds, what it came to)."""
    ordered = sorted(outcomes, key=lambda one: one[0])
    xs = [idle for idle, _ in ordered]
    made = [one for _, one in ordered]
    costs: list[Line] = [
        (*_USED, [one.gpu_s / 3600 for one in made]),
        (*_ALWAYS, [one.always_on_s / 3600 for one in made]),
    ]
    waits: list[Line] = [
        (name, colour, dash, [one.wait_s(p) for one in made]) for name, colour, dash, p in _WAITS
    ]
    notes = [f"{one.cold_starts}" for one in made]
    width, height = 2 * _WIDTH, _HEAD + _HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="24" font-size="16" font-weight="bold">Idle timeouts: {escape(title[:80])}</text>',
            f'<g transform="translate(0 {_HEAD})">',
            _panel("GPU-hours; at the points: cold starts", xs, costs, lambda v: f"{v:g}", notes),
            f'</g><g transform="translate({_WIDTH} {_HEAD})">',
            _panel("Wait until a server takes the request", xs, waits, lambda v: f"{v:g} s", []),
            "</g></svg>\n",
        ]
    )


def _panel(
    title: str, xs: Sequence[float], lines: Sequence[Line], say: Callable[[float], str], notes: Sequence[str]
) -> str:
    low, high = math.log(xs[0]), math.log(xs[-1])
    step = _step(max(max(values) for _, _, _, values in lines))
    top = step * max(1, math.ceil(max(max(values) for _, _, _, values in lines) / step - 1e-9))

    def x(idle: float) -> float:
        share = (math.log(idle) - low) / (high - low) if high > low else 0.5
        return _LEFT + 14 + share * (_WIDTH - _LEFT - _RIGHT - 28)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text x="{_LEFT}" y="22" font-weight="bold">{escape(title)}</text>']
    for i, (name, colour, dash, _) in enumerate(lines):
        at = _LEFT + i * 120
        parts.append(_path([(at, 38), (at + 26, 38)], colour, dash))
        parts.append(f'<text x="{at + 32}" y="42">{escape(name)}</text>')
    for i in range(round(top / step) + 1):
        level = y(i * step)
        parts.append(f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        label = escape(say(round(i * step, 9)))
        parts.append(
            f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end" fill="#555555">{label}</text>'
        )
    last = -math.inf
    for idle in xs:
        if x(idle) - last >= 34:  # labels that would touch are left out
            last = x(idle)
            parts.append(
                f'<text x="{last:.1f}" y="{_HEIGHT - 28}" text-anchor="middle" fill="#555555">{idle:g}</text>'
            )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle" fill="#555555">'
        "idle timeout, seconds</text>"
    )
    for name, colour, dash, values in lines:
        points = [(x(idle), y(value)) for idle, value in zip(xs, values, strict=True)]
        parts.append(_path(points, colour, dash))
        if name != _ALWAYS[0]:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
    for idle, value, note in zip(xs, lines[0][3], notes, strict=False):
        parts.append(
            f'<text x="{x(idle):.1f}" y="{y(value) + 18:.1f}" text-anchor="middle" fill="#333333">{note}</text>'
        )
    return "\n".join(parts)


def _step(most: float) -> float:
    """Between two lines of the grid: 1, 2 or 5 times a power of ten, four to eight of them."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(s * power for s in (0.2, 0.5, 1.0, 2.0) if most <= 6 * s * power)


def _path(points: Sequence[tuple[float, float]], colour: str, dashes: str) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"{dash}/>'
    )
