"""Chat, completions and every other endpoint with OpenAI's error object and ``data: [DONE]``.

vLLM sends ``data: {"error": {…, "code": 4xx|5xx}}`` for a failure inside a stream and ``[DONE]`` after it; the
openai SDK raises on any ``data`` object with an ``error`` field.
"""

from __future__ import annotations

import re

from ..errors import Fault
from .base import encode, openai_error

_TAIL_BYTES = 64
_ERROR = re.compile(rb'^data:\s*\{\s*"error"\s*:', re.M)
_CODE = re.compile(rb'"code"\s*:\s*"?([45][0-9]{2})\b')


class OpenAI:
    """The words of OpenAI's chat and completions APIs."""

    def error_body(self, fault: Fault) -> bytes:
        """``{"error": {"message", "type", "param", "code"}}``."""
        return encode({"error": openai_error(fault)})

    def error_frame(self, fault: Fault) -> bytes:
        """The same object with the true ``status``, as one ``data`` event."""
        return b"data: " + encode({"error": {**openai_error(fault), "status": fault.status}}) + b"\n\n"

    def stream_end(self) -> DoneMarker:
        """Waits for ``data: [DONE]``."""
        return DoneMarker()


class DoneMarker:
    """Keeps the last bytes of a stream, where ``data: [DONE]`` must stand at its end."""

    __slots__ = ("_failed", "_tail", "status")

    def __init__(self) -> None:
        self.status = 200
        self._tail = b""
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; an error frame is found where it stands whole in one of them."""
        if len(data) >= _TAIL_BYTES:
            self._tail = data[-_TAIL_BYTES:]
        else:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if b'"error"' in data and _ERROR.search(data):
            self._failed = True
            code = _CODE.search(data)
            self.status = int(code[1]) if code else 500

    def terminal(self) -> bool:
        """Whether ``[DONE]`` was the last event, or the upstream has said itself that it failed."""
        return self._failed or b"data: [DONE]" in self._tail or b"data:[DONE]" in self._tail
