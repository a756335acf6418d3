"""The requests of the suite: one valid body per proxied endpoint, and the tool that is offered."""

from __future__ import annotations

from typing import Any

MAX_TOKENS = 16

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": WEATHER,
            "strict": True,
        },
    }
]
TOOL_CHOICE: Any = {"type": "function", "function": {"name": "get_weather"}}


CALLING: dict[str, Any] = {"max_tokens": 256, "temperature": 1, "seed": 1}
"""Sampling with which even random weights, held by a grammar, come to the end of a call: greedy ones may loop in it."""


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "How high is the tower? Zwölf Meter — or 東京 🗼?"}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        **more,
    }


def completion(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "one two three", "max_tokens": MAX_TOKENS, "temperature": 0, **more}


def response(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "input": "How high is the tower?", "max_output_tokens": MAX_TOKENS, **more}


def message(model: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "How high is the tower?"}],
        "max_tokens": MAX_TOKENS,
        **more,
    }


def count_tokens(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "How high is the tower?"}], **more}


GENERATING: dict[str, Any] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/messages": message,
}
"""Endpoints that stream, with the maker of a body for each."""

TEXT: dict[str, Any] = {
    **GENERATING,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": lambda model, **more: {"model": model, "prompt": "one two three", **more},
    "/detokenize": lambda model, **more: {"model": model, "tokens": [100, 101, 102], **more},
}
"""Endpoints of a model that generates."""

_RANK = {"query": "a tower", "documents": ["a lighthouse", "a dam", "the weather"]}
_SCORE = {"text_1": "a tower", "text_2": ["a lighthouse", "a dam"]}

POOLING: dict[str, Any] = {
    "/v1/embeddings": lambda model, **more: {"model": model, "input": ["a tower", "a dam"], **more},
    "/pooling": lambda model, **more: {"model": model, "input": "a tower", **more},
    "/classify": lambda model, **more: {"model": model, "input": "a tower", **more},
    "/v1/rerank": lambda model, **more: {"model": model, **_RANK, **more},
    "/rerank": lambda model, **more: {"model": model, **_RANK, **more},
    "/v2/rerank": lambda model, **more: {"model": model, **_RANK, **more},
    "/v1/score": lambda model, **more: {"model": model, **_SCORE, **more},
    "/score": lambda model, **more: {"model": model, **_SCORE, **more},
}
"""Endpoints of a pooling model."""

AUDIO = ("/v1/audio/transcriptions", "/v1/audio/translations")
"""Endpoints that take a form with a file."""

WAVE = (
    b"RIFF\x44\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00"
    b"data\x20\x00\x00\x00" + bytes(range(32))
)
"""A sound file of sixteen samples."""

PATHS: tuple[str, ...] = (*TEXT, *POOLING, *AUDIO)
"""Every path that is proxied by its exact name."""
