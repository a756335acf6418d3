"""Rows of cells as aligned text, for commands."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """The rows, a line each, columns two spaces apart; right: all but the first column end at one edge.

    Whatever is not printable becomes a question mark, so that no cell moves the terminal's cursor.
    """
    plain = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*(_filled(row, plain) for row in plain), strict=True)]
    lines = []
    for row in plain:
        cells = [
            cell.rjust(width) if right and at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _filled(row: list[str], rows: list[list[str]]) -> list[str]:
    return row + [""] * (max(map(len, rows)) - len(row))
