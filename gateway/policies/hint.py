"""What a server says of itself, as requests to add to those that are counted there."""

from __future__ import annotations

_NEARLY_FULL = 0.9
_FULL = 4.0


def hint(waiting: float, kv: float) -> float:
    """Requests that wait inside the server, and up to four more as its KV cache (use: 0 to 1) goes from 90 % to full.

    A server that has no room for another request's tokens makes it wait, or takes the room from one that runs.
    """
    if kv <= _NEARLY_FULL:
        return waiting
    return waiting + _FULL * (min(kv, 1.0) - _NEARLY_FULL) / (1.0 - _NEARLY_FULL)
