"""What differs between the APIs Penstock speaks: how a fault is written, and when a stream is whole."""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..errors import Fault

encode = msgspec.json.encode

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a text that is no JSON, no UTF-8, or too deep."""


class StreamEnd(Protocol):
    """Watches the bytes of one stream go by, whatever their chunks.

    ``status`` is the status that metrics count: 200, or that of an error frame the upstream sent.
    """

    status: int

    def feed(self, data: bytes) -> None: ...

    def terminal(self) -> bool:
        """Whether the stream may end here: its terminal event, or an error frame of the upstream, has passed."""


class DialectWords(Protocol):
    """One API's words."""

    def error_body(self, fault: Fault) -> bytes:
        """The body of an error response."""

    def error_frame(self, fault: Fault) -> bytes:
        """The frame that says in a stream that has begun that it failed; ends with a blank line."""

    def stream_end(self) -> StreamEnd:
        """A new watcher for one stream."""

    def may_keep_stream(self, body: bytes, choices: int) -> bool:
        """Whether a stream that ended cleanly is a whole answer, to be given again: stricter than ``terminal``.

        ``choices``: how many the request asked for, at least.
        """

    def may_keep_whole(self, body: bytes | bytearray) -> bool:
        """Whether a 2xx answer that is no stream says that it is whole."""


def openai_error(fault: Fault) -> dict[str, object]:
    """OpenAI's error object."""
    return {
        "message": fault.message,
        "type": fault.type,
        "param": fault.param,
        "code": fault.code,
    }
