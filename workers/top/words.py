"""Numbers as a frame says them; what is not known is a dash."""

from __future__ import annotations

_UNKNOWN = "-"


def count(n: float) -> str:
    """A whole number."""
    return f"{n:,.0f}"


def rate(a_second: float | None) -> str:
    """One place behind the point while it matters."""
    if a_second is None:
        return _UNKNOWN
    return f"{a_second:,.1f}" if a_second < 1000 else f"{a_second:,.0f}"


def percent(share: float | None) -> str:
    """Of 0 to 1, or more of something that several have."""
    return f"{100 * share:.1f} %" if share is not None else _UNKNOWN


def duration(seconds: float | None) -> str:
    """Three digits, in the unit that fits."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 1:
        ms = 1000 * seconds
        return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def size(n: float) -> str:
    """Bytes."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if n >= unit:
            return f"{n / unit:,.1f} {name}"
    return f"{n / 1024:,.1f} KiB"
