"""The bytes every subject sees: one chat request, one completion, one stream.

Strategy: fixed, so that a figure of today can be laid beside one of last month. The request is about 700 bytes
and the reply about 640, as a short chat turn has them. The stream is 33 events: a role, 30 tokens, the finish
reason, and ``[DONE]``.
"""

from __future__ import annotations

import json

MODEL = "bench"
STREAM_MODEL = "bench-stream"
PACED_MODEL = "bench-paced"
CHAT_PATH = "/v1/chat/completions"
STREAM_EVENTS = 33
#: Models whose replies have these sizes in bytes; the smallest is the completion itself.
SIZED = {"bench-600": 0, "bench-8k": 8 << 10, "bench-64k": 64 << 10}

_SYSTEM = (
    "You are the assistant of a hydroelectric plant. Answer operators briefly, name the unit of every figure, and "
    "say so when a reading looks wrong rather than guessing what it might have meant."
)
_USER = (
    "Turbine two reports 14.2 bar at the inlet and 412 litres a second through the wicket gates. The head above the "
    "runner was 145 metres this morning. Is the pressure plausible for that flow, what would you check first if it is "
    "not, and how long may the unit stay on line before somebody has to walk down to it? "
    "The last inspection was nine days ago."
)


def chat_body(model: str = MODEL, *, stream: bool = False, **more: object) -> bytes:
    """Return one chat completion request, about 700 bytes of JSON."""
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}],
        "temperature": 0.7,
        "max_tokens": 96,
    }
    if stream:
        body["stream"] = True
    return json.dumps({**body, **more}).encode()


def completion() -> bytes:
    """Return the reply to a plain request, about 640 bytes."""
    text = (
        "It is plausible: 145 metres of head give 14.2 bar at the runner when nothing flows, so at 412 litres a "
        "second you should read a little less. Compare the inlet gauge with the one on the spiral case, then look "
        "at the trash rack. It may stay on line as long as bearing temperature and vibration are steady; "
        "walk down within the hour."
    )
    return json.dumps(
        {
            "id": "chatcmpl-0000000000000000",
            "object": "chat.completion",
            "created": 1700000000,
            "model": MODEL,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 131, "completion_tokens": 77, "total_tokens": 208},
        }
    ).encode()


def sized_completion(model: str) -> bytes:
    """Return the completion, its text made longer until the whole has the size of that model's replies."""
    reply = json.loads(completion())
    message = reply["choices"][0]["message"]
    message["content"] += "x" * max(0, SIZED[model] - len(completion()))
    return json.dumps(reply).encode()


def stream_event(delta: dict[str, str], finish: str | None = None, model: str = STREAM_MODEL) -> bytes:
    """Return one SSE event of a chat stream."""
    chunk = {
        "id": "chatcmpl-0000000000000000",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def stream_events() -> list[bytes]:
    """Return the events of one whole stream, ``STREAM_EVENTS`` of them."""
    words = [stream_event({"content": f" word{n:02d}"}) for n in range(STREAM_EVENTS - 3)]
    return [
        stream_event({"role": "assistant"}),
        *words,
        stream_event({}, "stop"),
        b"data: [DONE]\n\n",
    ]
