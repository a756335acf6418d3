"""How requests to one model are put together."""

from __future__ import annotations

from dataclasses import dataclass

from .config.model import Batching


@dataclass(frozen=True, slots=True)
class BatchTerms:
    """Of one model, from its configuration.

    ``window_s``: how long the first waits for others. ``max_items``: inputs or prompts in one upstream request at most;
    ``max_bytes``: its body at most. ``exact``: each caller is told its own tokens, which may have to be asked for; else
    the sum is shared out by length.
    """

    window_s: float
    max_items: int
    max_bytes: int
    exact: bool

    @classmethod
    def of(cls, batching: Batching, max_bytes: int) -> BatchTerms | None:
        """As configured; None where requests go alone."""
        if not batching.window_ms:
            return None
        return cls(batching.window_ms / 1000, batching.max_items, max_bytes, batching.usage == "exact")
