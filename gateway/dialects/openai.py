"""Chat, completions and every other endpoint with OpenAI's error object and ``data: [DONE]``.

vLLM sends ``data: {"error": {…, "code": 4xx|5xx}}`` for a failure inside a stream and ``[DONE]`` after it; the
openai SDK raises on any ``data`` object with an ``error`` field.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..errors import Fault
from .base import UNREADABLE, encode, openai_error

_TAIL_BYTES = 64
_FRAME_BYTES = 4096  # of an error frame, as much is read to find its code
# A line break of its own cannot stand inside JSON, so generated text cannot fake the start of a line.
# The marker is the whole line, of which the stream may lack the end.
_DONE = re.compile(rb"[\r\n]data: ?\[DONE\](?:[\r\n]|\Z)")
_ERROR = re.compile(rb'[\r\n]data:[ \t]*(\{[ \t]*"error"[ \t]*:[ \t]*[^n \t\r\n][^\r\n]*)')  # null is none
_CODE = re.compile(rb'"code"\s*:\s*"?([45][0-9]{2})(?=[",}\s])')


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

    def may_keep_stream(self, body: bytes, choices: int) -> bool:
        """``[DONE]`` after a ``finish_reason`` for every choice, and no error frame."""
        if _DONE.search((b"\n" + body[-_TAIL_BYTES:])[-_TAIL_BYTES:]) is None:
            return False
        data = [line[5:] for line in body.splitlines() if line.startswith(b"data:")]
        if data.pop().strip() != b"[DONE]":
            return False
        try:
            chunks = list(map(_chunk, data))  # a [DONE] before the end is no JSON
        except UNREADABLE:
            return False
        finished: dict[int, bool] = {}
        for chunk in chunks:
            if chunk.error is not None:
                return False
            for choice in chunk.choices or ():
                reason = choice.finish_reason
                if reason is not None or choice.index not in finished:
                    if reason in _UNFINISHED:
                        return False
                    finished[choice.index] = reason is not None
        return len(finished) >= choices and all(finished.values())

    def may_keep_whole(self, body: bytes | bytearray) -> bool:
        """None that was broken off by the server (vLLM's ``finish_reason`` "abort" and "error")."""
        at = body.rfind(_REASON)
        while at >= 0:
            end = at + len(_REASON)
            if body[end : end + 12].lstrip(b': "').startswith(_BROKEN_OFF):
                return False
            at = body.rfind(_REASON, 0, at)
        return True


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk).decode

#: What vLLM says of a request that it gave up, not the model (vllm/v1/engine, FinishReason).
_UNFINISHED = frozenset({"abort", "error"})
_REASON = b'"finish_reason"'
_BROKEN_OFF = (b"abort", b"error")


class DoneMarker:
    """Keeps the last bytes of a stream, where ``data: [DONE]`` must stand at its end, and notices an error frame."""

    __slots__ = ("_failed", "_frame", "_tail", "status")

    def __init__(self) -> None:
        self.status = 200
        self._tail = b"\n"
        self._failed = False
        self._frame = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; what an edge cuts in two is found with the next ones."""
        if self._frame:
            self._read(self._frame + data)
        window = self._tail + data
        if not self._failed and b'"error"' in window:
            match = _ERROR.search(window)
            if match is not None:
                self._failed = True
                self._read(window[match.start(1) :])
        self._tail = window[-_TAIL_BYTES:]

    def _read(self, frame: bytes) -> None:
        """The status in an error frame, of which the end may still be to come."""
        line = re.split(rb"[\r\n]", frame, maxsplit=1)
        code = _CODE.search(line[0])
        self.status = int(code[1]) if code is not None else 500
        whole = code is not None or len(line) > 1 or len(frame) > _FRAME_BYTES
        self._frame = b"" if whole else frame

    def terminal(self) -> bool:
        """Whether ``[DONE]`` was the last event, or the upstream has said itself that it failed."""
        return self._failed or _DONE.search(self._tail) is not None
