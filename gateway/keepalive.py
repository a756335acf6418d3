"""Keeps streams alive that wait for servers to start: which of them are due for a comment, and when to look again.

For a while nothing is sent, so a failure has its true status; then the stream is opened and gets a comment now and
then, until its answer begins. A comment (a line that begins with a colon) is none of an event stream's events: every
parser skips it (WHATWG HTML, "Server-sent events").

Strategy: a heap by the time of the next look, so a tick costs one comparison while nobody is due. The registry keeps
nobody alive: who is gone by the time its turn comes is forgotten then. It refuses to know what a stream is and what
is said to it: each says for itself when it wants to be looked at again.
"""

from __future__ import annotations

import heapq
import weakref
from itertools import count
from typing import Protocol

COMMENT = b": keepalive\n\n"


class Kept(Protocol):
    """A stream that may have to be kept alive."""

    def look(self, now: float, write_timeout_s: float) -> float | None:
        """Do what is due; when to be looked at again (s, after ``now``), None for never."""


class KeepAlive:
    """Streams of one worker that wait; all times are seconds of the worker's clock."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, weakref.ref[Kept]]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, stream: Kept, at: float) -> None:
        """Look at ``stream`` from then on; once for each ``add``, and again as it says."""
        heapq.heappush(self._heap, (at, next(self._order), weakref.ref(stream)))

    def tick(self, now: float, write_timeout_s: float) -> None:
        """Look at all that are due, in the order of their times; each once at most."""
        heap = self._heap
        again: list[tuple[float, int, weakref.ref[Kept]]] = []
        while heap and heap[0][0] <= now:
            _, order, known = heapq.heappop(heap)
            stream = known()
            if stream is not None:
                at = stream.look(now, write_timeout_s)
                if at is not None:
                    again.append((at, order, known))
        for entry in again:
            heapq.heappush(heap, entry)
