"""One model's queue in one worker."""

from __future__ import annotations

from .bounds import Bounds
from .fairness import Line


class Dismissed(Exception):
    """Who waited for a place at a model is to wait for its servers instead."""


class Door:
    """Who waits here for a place. ``spared_at``: since when a free place is left to another worker, or None.

    ``wished``, ``wished_share``: what other workers have been told. ``doomed_at``: when it was last looked who waits in
    vain.
    """

    __slots__ = ("doomed_at", "line", "model", "spared_at", "wished", "wished_share")

    def __init__(self, model: Bounds, line: Line) -> None:
        self.model = model
        self.line = line
        self.wished = 0
        self.wished_share = 0
        self.spared_at: float | None = None
        self.doomed_at = 0.0
