"""What a place that keeps API keys does, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...gateway.keys import Key

ROUND_S = 0.2
"""How often a file is looked at; the poll of a Redis is no slower than twice that."""


class Listener(Protocol):
    """Who wants to know of keys."""

    def found(self, keys: dict[str, Key]) -> None:
        """All keys there are now, by id."""

    def unchanged(self) -> None:
        """They could be read, and are what was found last."""

    def lost(self, why: str) -> None:
        """They cannot be read; the line says why. What was found before still counts."""


class KeySource(Protocol):
    """Where keys are."""

    @property
    def name(self) -> str:
        """`file` or `redis`, and where."""

    def once(self) -> dict[str, Key]:
        """All keys, without a running loop, in bounded time. Raises BadKeys, NoKeys among them."""

    def add(self, id: str, key: Key, check: Callable[[dict[str, Key]], None]) -> None:
        """Add a key to those that `check` has seen and raised nothing about. Raises BadKeys."""

    def remove(self, id: str) -> bool:
        """Revoke a key; False when there is none of that id. Raises BadKeys."""

    async def follow(self, listener: Listener) -> None:
        """Tell at once, and then whenever something has changed, until cancelled."""
