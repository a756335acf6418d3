"""POST /v1/chat/completions, plain and streamed, as vLLM answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ..exchange import Exchange
from ..model import text
from ..model.runner import Ticket
from . import body as fields
from .context import Context
from .errors import ApiError
from .generation import Choice, Limits, Unit, calling, limits, prompt_tokens, prose, structured, usage
from .logprobs import chat_entry

DONE = b"data: [DONE]\n\n"
_ENCODER = msgspec.json.Encoder()


@dataclass(slots=True)
class Chat:
    """A chat request, understood: what to say and how to dress it."""

    ident: str
    model: str
    created: int
    prompt: bytes
    prompt_tokens: int
    choices: list[Choice]
    logprobs: int | None
    include_usage: bool = False
    continuous_usage: bool = False


async def serve(context: Context, exchange: Exchange) -> None:
    """Answers one request."""
    body = fields.decode(exchange.request)
    chat = understand(context, body)
    with context.runner.start(c.job(chat.prompt) for c in chat.choices) as ticket:
        if fields.flag(body, "stream"):
            await exchange.stream(events(chat, ticket))
        else:
            await ticket.finish()
            await exchange.json(200, completion(chat))


def understand(context: Context, body: dict[str, Any]) -> Chat:
    """Validates and decides the answer."""
    model = context.model(body)
    messages = fields.required(body, "messages", list)
    if not messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    prompt = render(messages)
    count = prompt_tokens(prompt)
    limit = limits(body, count, context.settings.max_model_len, "max_completion_tokens", "max_tokens")
    n = fields.integer(body, "n", 1, 1, 128)
    fields.number(body, "temperature", 1.0, 0.0, 2.0)
    fields.number(body, "top_p", 1.0, 0.0, 1.0)
    options = fields.optional(body, "stream_options", dict) or {}
    if options and not fields.flag(body, "stream"):
        raise ApiError(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    functions = wanted_calls(body, messages)
    wanted = wanted_schema(body.get("response_format"), "response_format")
    choices: list[Choice] = []
    for index in range(n):
        seed = text.seed_of(body, f"chat {index}")
        if functions:
            choices.append(calling(seed, limit, functions))
        elif wanted is not None:
            choices.append(structured(seed, limit, wanted))
        else:
            choices.append(prose(seed, limit, reasoning=context.settings.reasoning))
    logprobs = fields.integer(body, "top_logprobs", 0, 0, 20) if fields.flag(body, "logprobs") else None
    ident = text.ident("chatcmpl-", text.seed_of(body, "chat"))
    return Chat(
        ident,
        model,
        context.settings.created,
        prompt,
        count,
        choices,
        logprobs,
        bool(options.get("include_usage")),
        bool(options.get("continuous_usage_stats")),
    )


def decide(
    context: Context, seed: int, limit: Limits, functions: list[tuple[str, Any]], wanted: Any
) -> Choice:
    """Calls, a document for the schema `wanted`, or prose."""
    if functions:
        return calling(seed, limit, functions)
    if wanted is not None:
        return structured(seed, limit, wanted)
    return prose(seed, limit, reasoning=context.settings.reasoning)


def render(messages: list[Any]) -> bytes:
    """A prompt from messages; a longer conversation begins with the shorter one's bytes."""
    out: list[str] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"Field required: messages[{index}].role", param=f"messages[{index}].role")
        out.append(f"<|{message['role']}|>")
        out.append(fields.text_of(message.get("content"), f"messages[{index}].content"))
        if message.get("tool_calls"):
            out.append(msgspec.json.encode(message["tool_calls"]).decode())
    return "".join(out).encode("utf-8", "replace")


def wanted_calls(body: dict[str, Any], messages: list[Any]) -> list[tuple[str, Any]]:
    """The functions that the answer must call: by tool_choice, or (auto) named in the last user message."""
    tools = fields.optional(body, "tools", list) or []
    known: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        if isinstance(tool, dict) and tool.get("type", "function") not in ("function", "custom"):
            continue
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiError(400, f"Field required: tools[{index}].function.name", param=f"tools[{index}]")
        known[function["name"]] = function.get("parameters", function.get("input_schema"))
    choice = body.get("tool_choice", "auto" if known else "none")
    if not known:
        return []
    if isinstance(choice, dict):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str):
            if name not in known:
                raise ApiError(400, f"tool_choice names an unknown tool: {name[:200]}", param="tool_choice")
            return [(name, known[name])]
        choice = choice.get("type")
    if choice == "none":
        return []
    if choice in ("required", "any"):
        return [next(iter(known.items()))]
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") == "user":
        said = fields.text_of(last.get("content"), "messages")
        return [(name, parameters) for name, parameters in known.items() if name in said]
    return []


def wanted_schema(wanted: Any, param: str) -> Any:
    """The JSON schema that the answer must fit, None for free text."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    inner = wanted.get("json_schema", wanted) if isinstance(wanted, dict) else None
    if kind != "json_schema" or not isinstance(inner, dict):
        raise ApiError(400, f"{param} is not understood", param=param)
    return inner.get("schema", {"type": "object"})


def completion(chat: Chat) -> dict[str, Any]:
    """The plain answer."""
    return {
        "id": chat.ident,
        "object": "chat.completion",
        "created": chat.created,
        "model": chat.model,
        "choices": [_choice(chat, i, c) for i, c in enumerate(chat.choices)],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage(chat.prompt_tokens, sum(c.goal for c in chat.choices)),
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }


async def events(chat: Chat, ticket: Ticket) -> AsyncIterator[bytes]:
    """The streamed answer: a role chunk per choice, a chunk per token, usage if wanted, [DONE]."""
    for index in range(len(chat.choices)):
        yield _chunk(chat, index, {"role": "assistant", "content": ""}, None, 0)
    units = [c.units() for c in chat.choices]
    sent = 0
    async for ready in ticket:
        choice = chat.choices[ready.choice]
        for _ in range(ready.tokens):
            unit = next(units[ready.choice])
            sent += 1
            last = choice if ready.finished else None
            yield _chunk(chat, ready.choice, _delta(choice, unit), last, sent, unit)
    if chat.include_usage:
        yield _event(_envelope(chat) | {"choices": [], "usage": usage(chat.prompt_tokens, sent)})
    yield DONE


def _choice(chat: Chat, index: int, choice: Choice) -> dict[str, Any]:
    reasoning = choice.joined("reasoning") or None
    logprobs = None
    if chat.logprobs is not None:
        entries = [chat_entry(u.text, chat.logprobs) for u in choice.units() if u.kind == "content"]
        logprobs = {"content": entries}
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": None if choice.calls else choice.joined("content"),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [_call(c.id, c.name, c.arguments) for c in choice.calls],
            "reasoning": reasoning,
            "reasoning_content": reasoning,
        },
        "logprobs": logprobs,
        "finish_reason": choice.reason,
        "stop_reason": choice.stop_reason,
        "token_ids": None,
    }


def _call(ident: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(choice: Choice, unit: Unit) -> dict[str, Any]:
    if unit.kind == "content":
        return {"content": unit.text}
    if unit.kind == "reasoning":
        return {"reasoning": unit.text, "reasoning_content": unit.text}
    if unit.kind == "tool":
        return {"tool_calls": [_call(choice.calls[unit.call].id, unit.text, "") | {"index": unit.call}]}
    return {"tool_calls": [{"index": unit.call, "function": {"arguments": unit.text}}]}


def _envelope(chat: Chat) -> dict[str, Any]:
    return {
        "id": chat.ident,
        "object": "chat.completion.chunk",
        "created": chat.created,
        "model": chat.model,
    }


def _chunk(
    chat: Chat, index: int, delta: dict[str, Any], last: Choice | None, sent: int, unit: Unit | None = None
) -> bytes:
    logprobs = None
    if chat.logprobs is not None and unit is not None and unit.kind == "content":
        logprobs = {"content": [chat_entry(unit.text, chat.logprobs)]}
    choice: dict[str, Any] = {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": last.reason if last else None,
    }
    if last:
        choice["stop_reason"] = last.stop_reason
    out = _envelope(chat) | {"choices": [choice]}
    if chat.continuous_usage and chat.include_usage:
        out["usage"] = usage(chat.prompt_tokens, sent)
    return _event(out)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _ENCODER.encode(value) + b"\n\n"
