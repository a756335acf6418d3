"""Request bodies as far as the gateway reads them: one Struct per endpoint that has a shape of its own.

Unknown fields are allowed everywhere: vLLM takes many more parameters, and new ones with each release. A field
is listed because a wrong type in it is certain to be refused by every vLLM, or because the gateway acts on it.
Field names: OpenAI's API reference, vLLM's ``vllm/entrypoints/openai/protocol.py``, Anthropic's Messages API.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

NonEmpty = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Temperature = Annotated[float, Meta(ge=0)]


class Routed(Struct):
    """The least a body must have; also all that is read of a body over 1 MiB."""

    model: NonEmpty
    stream: bool | None = None


class Message(Struct):
    """One turn of a conversation; roles are open, vLLM passes custom ones to the chat template."""

    role: NonEmpty
    content: str | list[str | dict[str, Any]] | None = None


class StreamOptions(Struct):
    """``stream_options``: whether the last chunk carries ``usage``."""

    include_usage: bool | None = None


class ChatCompletion(Routed, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    temperature: Temperature | None = None
    top_p: float | None = None
    n: Count | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None


class Completion(Routed, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]] | None = None
    temperature: Temperature | None = None
    top_p: float | None = None
    n: Count | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stream_options: StreamOptions | None = None


class Embedding(Routed, kw_only=True):
    """``POST /v1/embeddings``; ``messages`` is vLLM's chat form of the same."""

    input: str | list[str | int | list[int]] | None = None
    messages: list[Message] | None = None


class Response(Routed, kw_only=True):
    """``POST /v1/responses``."""

    input: str | list[dict[str, Any]] | None = None
    temperature: Temperature | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None


class AnthropicMessage(Routed, kw_only=True):
    """``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    temperature: Temperature | None = None
    max_tokens: int | None = None
