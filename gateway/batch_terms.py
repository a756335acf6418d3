"""How requests to one model are put together."""

from __future__ import annotations

from dataclasses import dataclass


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
