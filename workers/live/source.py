"""What a place that a configuration comes from does, and whom it tells: a file, a Redis, or what may join them."""

from __future__ import annotations

from typing import Protocol

from ...gateway.config import Layer


class BadDocument(Exception):
    """What is there cannot be used; the text is one line."""

    def __init__(self, where: object, what: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in f"{where}: {what}"))


class Listener(Protocol):
    """Who wants to know what a configuration is made of."""

    def found(self, layer: Layer | None) -> None:
        """What is there now; None where nothing has been put there yet."""

    def unchanged(self) -> None:
        """It can be told what is there, and that is what was found last."""

    def refused(self, why: str) -> None:
        """Something is there that is no text of a configuration. What was found before still counts."""

    def lost(self, why: str) -> None:
        """It cannot be told what is there. What was found before still counts."""


class LiveSource(Protocol):
    """Where a configuration, or a part of one, is."""

    @property
    def name(self) -> str:
        """What people call it: `file` or `store`."""

    async def follow(self, listener: Listener) -> None:
        """Tell at once, and then whenever something has changed, until cancelled."""

    def look(self) -> None:
        """Have whoever follows look at once."""
