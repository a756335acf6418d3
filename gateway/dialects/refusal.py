"""What a stream that was opened too early is told when its answer is no stream after all.

An error answer becomes a fault with the status, message, type, param and code that its server gave, as far as they
can be read: OpenAI's and Anthropic's error objects, vLLM's older flat one, and FastAPI's ``detail``. A success that is
no event stream cannot be put into one; inventing events for it is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Fault, Kind
from .base import UNREADABLE

#: A longer error body is not read (bytes).
_BODY_BYTES = 64 << 10
#: A longer message is cut (characters).
_MESSAGE_CHARS = 8192
_WORD_CHARS = 256

_decode = msgspec.json.Decoder().decode


class Refusal(Fault):
    """A backend's error answer; ``code`` is the backend's own."""

    __slots__ = ("_code", "_status", "_type")

    def __init__(self, status: int, message: str, type: str, param: str | None, code: str | int) -> None:
        super().__init__(Kind.UPSTREAM_REFUSED, message, param=param)
        self._status = status
        self._type = type
        self._code = code

    @property
    def status(self) -> int:
        """As the backend answered."""
        return self._status

    @property
    def type(self) -> str:
        """The backend's word for it, or OpenAI's for the status."""
        return self._type

    @property
    def code(self) -> str | int:
        """The backend's own, or the status."""
        return self._code


def refusal(status: int, body: bytes | bytearray) -> Fault:
    """The fault that an answer is where only a stream would do; ``body`` may be empty where it was not read."""
    if 200 <= status < 300:
        return Fault(Kind.UPSTREAM_NO_STREAM, "the backend was asked for a stream and answered with none")
    told = _object(body)
    message, detail = told.get("message"), told.get("detail")
    text = message if isinstance(message, str) and message else detail if isinstance(detail, str) else ""
    param, code, kind = told.get("param"), told.get("code"), told.get("type")
    return Refusal(
        status,
        text[:_MESSAGE_CHARS] or f"the backend answered {status}",
        kind[:_WORD_CHARS] if isinstance(kind, str) and kind else _type(status),
        param[:_WORD_CHARS] if isinstance(param, str) else None,
        code[:_WORD_CHARS] if isinstance(code, str) and code else code if type(code) is int else status,
    )


def _object(body: bytes | bytearray) -> dict[str, Any]:
    """Where an error answer says what is wrong; empty where that cannot be read."""
    if len(body) > _BODY_BYTES:
        return {}
    try:
        answer = _decode(body)
    except UNREADABLE:
        return {}
    if not isinstance(answer, dict):
        return {}
    error = answer.get("error")
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else answer


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
