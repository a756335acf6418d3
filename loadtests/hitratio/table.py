"""The rows as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from .lab import BOUND, LRU, REACHED, Row

HEAD = """\
Hit ratios in percent of all requests. All policies have the same bytes: lru, s3-fifo, sieve and offline pay for packed
entries alone, their tables are free; L1's arena has that many bytes in all, index and headers included.
offline: Belady's MIN, exact, where all sizes are equal; otherwise Belady-size, which the optimum is not below.
bound: no policy can exceed it; the same where it is exact (=), otherwise PFOO-L (<=). -lru: points above exact LRU.
gap: points below the bound. refused: requests for entries too large for a cache of this size, kept by none of them."""


def table(rows: Sequence[Row], l1s: Sequence[str]) -> str:
    """All rows, trace by trace; `l1s`: the names of L1's figures."""
    online = (LRU, "s3-fifo", "sieve")
    lines = [HEAD]
    for trace in dict.fromkeys(row.trace for row in rows):
        titles = "".join(f"{name:>9}" for name in (*online, *l1s))
        points = "".join(f"{name + '-lru':>12}" for name in l1s)
        lines += [
            "",
            f"{trace:22}{'MiB':>9}{titles}{points}{'offline':>9}{'bound':>9}{'gap':>7}{'lru B':>8}{l1s[0] + ' B':>8}"
            f"{'refused':>9}",
        ]
        for row in rows:
            if row.trace != trace:
                continue
            figures = "".join(_percent(row.ratios.get(name), 9) for name in (*online, *l1s))
            points = "".join(_points(row.points(name), 12) for name in l1s)
            gap = row.points(BOUND, l1s[0])
            lines.append(
                f"{row.fraction:>22.1%}{row.capacity_bytes / 2**20:>9.2f}{figures}{points}"
                f"{_percent(row.ratios[REACHED], 9)}{'=' if row.exact else '<':>2}"
                f"{_percent(row.ratios[BOUND], 7)}{'-' if gap is None else f'{gap:.1f}':>7}"
                f"{_percent(row.byte_ratios[LRU], 8)}{_percent(row.byte_ratios.get(l1s[0]), 8)}{row.refused:>9.1%}"
            )
            lines += [f"{'':22}  {name}: {why}" for name, why in row.faults.items()]
    return "\n".join(lines)


def _percent(ratio: float | None, width: int) -> str:
    return f"{'-' if ratio is None else f'{100 * ratio:.2f}':>{width}}"


def _points(points: float | None, width: int) -> str:
    return f"{'-' if points is None else f'{points:+.2f}':>{width}}"
