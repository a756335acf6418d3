"""Finds named SSE events in a stream that arrives in arbitrary pieces.

The name is looked for behind ``event:`` at the start of a line; a raw line break cannot stand inside JSON, so
generated text cannot fake one (WHATWG HTML, "Server-sent events").
"""

from __future__ import annotations

import re

_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventMarker:
    """Remembers whether one of the terminal events, or of the failing ones, has passed."""

    __slots__ = ("_ended", "_failing", "_keep", "_pattern", "_tail", "status")

    def __init__(self, terminal: tuple[bytes, ...], failing: tuple[bytes, ...]) -> None:
        names = b"|".join(re.escape(name) for name in {*terminal, *failing})
        self._pattern = re.compile(rb"[\r\n]event: ?(%b)(?=[\r\n])" % names)
        self._failing = failing
        self._keep = max(map(len, {*terminal, *failing})) + len("\nevent: \n")
        self._tail = b"\n"
        self._ended = False
        self.status = 200

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; a line cut by their edge is found with the next ones."""
        window = self._tail + data
        if b"event" in window:
            for match in self._pattern.finditer(window):
                self._ended = True
                if match[1] in self._failing:
                    self.status = 500
        self._tail = window[-self._keep :]

    def terminal(self) -> bool:
        """Whether the stream may end here: after the last line of its last event, or no client has that event."""
        return self._ended and self._tail.endswith(_BLANK_LINES)


def whole(marker: EventMarker, body: bytes) -> bool:
    """Whether ``body`` ends with the terminal event and none of the failing ones is in it."""
    marker.feed(body)
    return marker.terminal() and marker.status == 200
