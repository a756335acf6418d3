"""OpenAI's Responses API: typed events, ``response.completed`` (or ``incomplete``, ``failed``) as the end.

(https://platform.openai.com/docs/api-reference/responses-streaming)
"""

from __future__ import annotations

import msgspec

from ..errors import Fault
from .base import UNREADABLE, encode, openai_error
from .events import EventMarker, whole


class Responses:
    """The words of OpenAI's Responses API."""

    def error_body(self, fault: Fault) -> bytes:
        """``{"error": {"message", "type", "param", "code"}}``."""
        return encode({"error": openai_error(fault)})

    def error_frame(self, fault: Fault) -> bytes:
        """An ``error`` event; the ``error`` object inside is what makes the openai SDK raise."""
        error = {**openai_error(fault), "status": fault.status}
        data = {
            "type": "error",
            "sequence_number": 0,
            "code": str(fault.code),
            "message": fault.message,
            "param": fault.param,
            "error": error,
        }
        return b"event: error\ndata: " + encode(data) + b"\n\n"

    def stream_end(self) -> EventMarker:
        """Waits for one of the three terminal events."""
        return EventMarker(
            (b"response.completed", b"response.incomplete", b"response.failed"),
            (b"error", b"response.failed"),
        )

    def may_keep_stream(self, body: bytes, choices: int) -> bool:
        """``response.completed`` at the end; what is incomplete may be complete the next time."""
        return whole(EventMarker((b"response.completed",), (b"error", b"response.failed")), body)

    def may_keep_whole(self, body: bytes | bytearray) -> bool:
        """A response whose ``status`` is ``completed``."""
        try:
            return _status(body).status == "completed"
        except UNREADABLE:
            return False


class _Response(msgspec.Struct):
    status: str | None = None


_status = msgspec.json.Decoder(_Response).decode
