"""The numbered events of the paced backend: what it sends, and so what a client must have received.

Strategy: every event has the same size and its own number, so a lost, doubled or torn event changes the checksum of
the whole stream, and the count of events follows from the count of bytes.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from .payload import PACED_MODEL, stream_event

EVENT_BYTES = 192
_TAIL = stream_event({}, "stop", PACED_MODEL) + b"data: [DONE]\n\n"


@lru_cache(maxsize=4)
def numbered(count: int) -> tuple[bytes, ...]:
    """Return ``count`` events of ``EVENT_BYTES`` bytes, then one that ends the stream by its dialect's rule."""
    bare = len(stream_event({"content": ""}, None, PACED_MODEL))
    events = tuple(
        stream_event({"content": f"{n:x}".ljust(EVENT_BYTES - bare)}, None, PACED_MODEL) for n in range(count)
    )
    return (*events, _TAIL)


@lru_cache(maxsize=4)
def expected(count: int) -> tuple[int, int]:
    """Return the length in bytes and the CRC-32 of a stream of ``count`` numbered events."""
    whole = b"".join(numbered(count))
    return len(whole), zlib.crc32(whole)
