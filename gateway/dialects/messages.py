"""Anthropic's Messages API: its error object, ``event: error`` and ``event: message_stop``.

A frame without the ``event`` line is ignored by the anthropic SDK, so the line matters
(https://docs.anthropic.com/en/api/errors, https://docs.anthropic.com/en/docs/build-with-claude/streaming).
"""

from __future__ import annotations

from ..errors import Fault
from .base import encode
from .events import EventMarker, whole

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Messages:
    """The words of Anthropic's Messages API."""

    def error_body(self, fault: Fault) -> bytes:
        """``{"type": "error", "error": {"type", "message"}}``."""
        status = fault.status
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return encode({"type": "error", "error": {"type": kind, "message": fault.message}})

    def error_frame(self, fault: Fault) -> bytes:
        """The object as an ``error`` event, with ``code`` and the true ``status`` beside what the SDK reads."""
        status = fault.status
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": fault.message, "code": fault.code, "status": status}
        return b"event: error\ndata: " + encode({"type": "error", "error": error}) + b"\n\n"

    def stream_end(self) -> EventMarker:
        """Waits for ``event: message_stop``."""
        return EventMarker((b"message_stop",), (b"error",))

    def may_keep_stream(self, body: bytes, choices: int) -> bool:
        """``message_stop`` at the end, and no ``error`` before it."""
        return whole(self.stream_end(), body)

    def may_keep_whole(self, body: bytes | bytearray) -> bool:
        """Every one."""
        return True
