"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect as vLLM serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ..exchange import Exchange
from ..model import text
from ..model.runner import Ticket
from . import body as fields
from .chat import decide, render, wanted_calls
from .context import Context
from .errors import ApiError
from .generation import Choice, Unit, limits, prompt_tokens

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(slots=True)
class Message:
    """A request, understood."""

    ident: str
    model: str
    prompt: bytes
    prompt_tokens: int
    choice: Choice


async def serve(context: Context, exchange: Exchange) -> None:
    """POST /v1/messages."""
    body = fields.decode(exchange.request)
    model, messages = context.model(body), _messages(body)
    fields.integer(body, "max_tokens", 0, 1, 1 << 31)
    fields.required(body, "max_tokens", int)
    prompt = render(messages)
    count = prompt_tokens(prompt)
    limit = limits(body, count, context.settings.max_model_len, "max_tokens")
    seed = text.seed_of(body, "messages")
    choice = decide(context, seed, limit, wanted_calls(body, messages), None)
    asked = Message(text.ident("chatcmpl-", seed), model, prompt, count, choice)
    with context.runner.start([choice.job(prompt)]) as ticket:
        if fields.flag(body, "stream"):
            await exchange.stream(_events(asked, ticket))
        else:
            await ticket.finish()
            await exchange.json(200, _plain(asked))


async def count_tokens(context: Context, exchange: Exchange) -> None:
    """POST /v1/messages/count_tokens."""
    body = fields.decode(exchange.request)
    context.model(body)
    count = prompt_tokens(render(_messages(body)))
    await exchange.json(200, {"input_tokens": count, "context_management": {"original_input_tokens": count}})


def _messages(body: dict[str, Any]) -> list[Any]:
    messages = fields.required(body, "messages", list)
    if not messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    if body.get("system") is not None:
        messages = [{"role": "system", "content": body["system"]}, *messages]
    return messages


def _plain(asked: Message) -> dict[str, Any]:
    choice = asked.choice
    content: list[dict[str, Any]] = []
    thought = choice.joined("reasoning")
    if thought:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    said = choice.joined("content")
    if said or not choice.calls:
        content.append({"type": "text", "text": said})
    for call in choice.calls:
        content.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _parsed(call.arguments)}
        )
    return {
        "id": asked.ident,
        "type": "message",
        "role": "assistant",
        "content": content,
        "model": asked.model,
        "stop_reason": _STOP_REASONS.get(choice.reason),
        "usage": {"input_tokens": asked.prompt_tokens, "output_tokens": choice.goal},
    }


async def _events(asked: Message, ticket: Ticket) -> AsyncIterator[bytes]:
    choice = asked.choice
    start: dict[str, Any] = {
        "id": asked.ident,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": asked.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": asked.prompt_tokens, "output_tokens": 0},
    }
    yield _event("message_start", {"message": start})
    units = choice.units()
    block: tuple[str, int] | None = None
    index = -1
    async for ready in ticket:
        for _ in range(ready.tokens):
            unit = next(units)
            wanted = ("tool" if unit.kind == "arguments" else unit.kind, unit.call)
            if wanted != block:
                if block is not None:
                    yield _event("content_block_stop", {"index": index})
                index += 1
                block = wanted
                yield _event("content_block_start", {"index": index, "content_block": _block(choice, unit)})
            if unit.kind != "tool":
                yield _event("content_block_delta", {"index": index, "delta": _delta(unit)})
    if block is not None:
        yield _event("content_block_stop", {"index": index})
    delta = {"stop_reason": _STOP_REASONS.get(choice.reason), "stop_sequence": None}
    spent = {"input_tokens": asked.prompt_tokens, "output_tokens": choice.goal}
    yield _event("message_delta", {"delta": delta, "usage": spent})
    yield _event("message_stop", {})


def _block(choice: Choice, unit: Unit) -> dict[str, Any]:
    if unit.kind == "content":
        return {"type": "text", "text": ""}
    if unit.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    call = choice.calls[unit.call]
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _delta(unit: Unit) -> dict[str, Any]:
    if unit.kind == "content":
        return {"type": "text_delta", "text": unit.text}
    if unit.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": unit.text}
    return {"type": "input_json_delta", "partial_json": unit.text}


def _parsed(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        # max_tokens cut the arguments short.
        return {}


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name} | value))
