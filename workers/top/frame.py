"""A frame as rich draws it: a headline, what is wrong, the tables; no more lines than there are.

Whatever a server or a configuration has put into a name is made printable: no cell moves the terminal's cursor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .change import Change
from .section import BAD, Cell, Section, fitted
from .tables import tables


def frame(change: Change | None, clock: str, trouble: str, lines: int | None) -> Group:
    """change: None while no gateway has answered. clock: the time of day. trouble: why there is nothing newer."""
    head = [_text(_headline(change, clock), "bold")]
    wrong = [trouble] if trouble else []
    if change is not None:
        wrong += _complaints(change.now.status)
    head += [_text(one, BAD) for one in wrong]
    if change is None:
        return Group(*head)
    room = lines - len(head) if lines is not None else None
    shown = fitted(tables(change), room)
    used = sum(1 + len(one.rows) for one in shown)
    spaced = room is None or used + len(shown) <= room
    parts: list[RenderableType] = [*head]
    for one in shown:
        parts += [Text(""), _table(one)] if spaced else [_table(one)]
    return Group(*parts)


def _headline(change: Change | None, clock: str) -> str:
    if change is None:
        return f"penstock top  {clock}"
    status = change.now.status
    over = f"  over {change.over_s:.1f} s" if change.over_s is not None else ""
    return (
        f"penstock {status['version']}  {clock}{over}  supervisor {change.now.life}  "
        f"configuration {status['generation']}"
    )


def _complaints(status: Mapping[str, Any]) -> list[str]:
    """What is wrong with the configuration's sources."""
    return [
        f"configuration of {name}: {why}"
        for name, one in status.get("sources", {}).items()
        for why in ([f"refused: {one['refused']}"] if one["refused"] else [])
        + ([] if one["readable"] else ["cannot be read"])
    ]


def _table(section: Section) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold cyan", expand=False)
    for at, head in enumerate(section.heads):
        table.add_column(Text(head, no_wrap=True), justify="left" if at < section.left else "right")
    for row in section.rows:
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(cell: Cell) -> Text:
    return _text(cell) if isinstance(cell, str) else _text(*cell)


def _text(words: str, style: str = "") -> Text:
    plain = "".join(c if c.isprintable() else "?" for c in words)
    return Text(plain, style, no_wrap=True, overflow="ellipsis")
