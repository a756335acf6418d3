"""The three streaming dialects as a fault sees them: the terminal event, the error frame, an event of padding."""

from __future__ import annotations

import msgspec

from .api.errors import ApiError

_TERMINALS = (b"data: [DONE]", b"event: message_stop", b"event: response.completed")


def is_terminal(event: bytes) -> bool:
    """Whether an SSE event says that its stream is complete."""
    return event.startswith(_TERMINALS)


def error_frames(path: str, status: int, message: str) -> list[bytes]:
    """A mid-stream failure as vLLM tells it; chat and completions still send [DONE] after it."""
    error = ApiError(status, message)
    if path.startswith("/v1/messages"):
        return [b"event: error\ndata: " + msgspec.json.encode(error.anthropic()) + b"\n\n"]
    if path.startswith("/v1/responses"):
        body = {
            "type": "error",
            "sequence_number": 0,
            "code": str(status),
            "message": message,
            "param": None,
            **error.openai(),
        }
        return [b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"]
    return [b"data: " + msgspec.json.encode(error.openai()) + b"\n\n", b"data: [DONE]\n\n"]


def filler(path: str, size_bytes: int) -> bytes:
    """One valid delta event of about `size_bytes`."""
    text = "x" * size_bytes
    if path.startswith("/v1/messages"):
        delta = {"type": "text_delta", "text": text}
        value = {"type": "content_block_delta", "index": 0, "delta": delta}
        return b"event: content_block_delta\ndata: " + msgspec.json.encode(value) + b"\n\n"
    if path.startswith("/v1/responses"):
        kind = "response.output_text.delta"
        place = {"item_id": "msg_filler", "output_index": 0, "content_index": 0}
        value = {"type": kind, "sequence_number": 0, **place, "delta": text, "logprobs": []}
        return b"event: response.output_text.delta\ndata: " + msgspec.json.encode(value) + b"\n\n"
    chat = path == "/v1/chat/completions"
    choice = {"index": 0, "logprobs": None, "finish_reason": None}
    value = {
        "id": "filler",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 0,
        "model": "filler",
        "choices": [choice | ({"delta": {"content": text}} if chat else {"text": text})],
    }
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
