"""A table of a frame before it is drawn: its words, and which of them are bad news. And how tables share a height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | tuple[str, str]
"""What is shown; with a style of rich's where it is to be seen."""
BAD = "bold red"
WORTH_A_LOOK = "yellow"
GOOD = "green"


@dataclass(slots=True)
class Section:
    """heads: what stands above the columns; the first one is the table's name. keep: rows that are never left out."""

    heads: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    left: int = 1
    """Columns whose text begins at the left edge; the others are numbers."""
    keep: int = 1

    def cut(self, most: int) -> Section:
        """With so many rows at most, the last of which says how many more there are."""
        if len(self.rows) <= most:
            return self
        more = len(self.rows) - most + 1
        return Section(self.heads, [*self.rows[: most - 1], (f"… {more} more",)], self.left, self.keep)


def fitted(sections: Sequence[Section], lines: int | None) -> list[Section]:
    """Those that have rows, cut so that they are `lines` high with their heads; None: whole.

    Rows are given in turns, so that a table of two is whole while one of a hundred has the rest.
    """
    shown = [one for one in sections if one.rows]
    if lines is None:
        return shown
    most = [min(len(one.rows), one.keep) for one in shown]
    spare = lines - len(shown) - sum(most)
    while spare > 0 and any(n < len(one.rows) for n, one in zip(most, shown, strict=True)):
        for at, one in enumerate(shown):
            if spare > 0 and most[at] < len(one.rows):
                most[at] += 1
                spare -= 1
    return [one.cut(n) for one, n in zip(shown, most, strict=True)]
