"""/v1/responses: create (plain, streamed, in the background), and GET, cancel and DELETE of stored ones."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ..exchange import Exchange
from ..model import text
from . import body as fields
from .chat import decide, render, wanted_calls, wanted_schema
from .context import Context
from .errors import ApiError
from .generation import Choice, limits, prompt_tokens
from .response_events import events
from .response_items import items

_PREFIX = "/v1/responses/"
_STORED = 1024
_RUNNING = 256


@dataclass(slots=True)
class Asked:
    """A request, understood. `skeleton` is the response object without status, output and usage."""

    skeleton: dict[str, Any]
    prompt: bytes
    prompt_tokens: int
    choice: Choice
    seed: int
    history: list[Any] = field(default_factory=list)

    def response(self, status: str | None = None) -> dict[str, Any]:
        """The response object; without a status, the finished one."""
        if status is not None:
            return self.skeleton | {"status": status, "output": [], "usage": None, "incomplete_details": None}
        cut = self.choice.reason == "length"
        reasoned = sum(u.kind == "reasoning" for u in self.choice.units())
        return self.skeleton | {
            "status": "incomplete" if cut else "completed",
            "output": items(self.choice, self.seed),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.choice.goal,
                "output_tokens_details": {"reasoning_tokens": reasoned},
                "total_tokens": self.prompt_tokens + self.choice.goal,
            },
        }


async def create(context: Context, exchange: Exchange) -> None:
    """POST /v1/responses."""
    body = fields.decode(exchange.request)
    asked = _understand(context, body)
    stored = body.get("store") is not False
    ident = asked.skeleton["id"]
    if fields.flag(body, "background"):
        if not stored:
            raise ApiError(400, "background can only be used when `store` is true", param="background")
        if len(context.background) >= _RUNNING:
            raise ApiError(503, "too many background responses")
        _keep(context, asked, asked.response("queued"))
        if ident not in context.background:
            task = asyncio.get_running_loop().create_task(_in_background(context, asked))
            context.background[ident] = task
            task.add_done_callback(lambda _: context.background.pop(ident, None))
        await exchange.json(200, asked.response("queued"))
        return
    with context.runner.start([asked.choice.job(asked.prompt)]) as ticket:
        if fields.flag(body, "stream"):
            await exchange.stream(events(asked.choice, asked.seed, asked.response, ticket))
        else:
            await ticket.finish()
            await exchange.json(200, asked.response())
    if stored:
        _keep(context, asked, asked.response())


async def retrieve(context: Context, exchange: Exchange) -> None:
    """GET /v1/responses/{id}."""
    await exchange.json(200, _find(context, exchange)["response"])


async def cancel(context: Context, exchange: Exchange) -> None:
    """POST /v1/responses/{id}/cancel: only what runs in the background can be cancelled."""
    entry = _find(context, exchange)
    response = entry["response"]
    if response["status"] not in ("queued", "in_progress"):
        raise ApiError(400, "Cannot cancel a synchronous response.", param="response_id")
    task = context.background.get(response["id"])
    if task is not None:
        task.cancel()
    entry["response"] = response | {"status": "cancelled"}
    await exchange.json(200, entry["response"])


async def delete(context: Context, exchange: Exchange) -> None:
    """DELETE /v1/responses/{id}."""
    ident = _find(context, exchange)["response"]["id"]
    del context.stored[ident]
    await exchange.json(200, {"id": ident, "object": "response", "deleted": True})


async def _in_background(context: Context, asked: Asked) -> None:
    entry = context.stored[asked.skeleton["id"]]
    with context.runner.start([asked.choice.job(asked.prompt)]) as ticket:
        entry["response"] = asked.response("in_progress")
        await ticket.finish()
    entry["response"] = asked.response()


def _find(context: Context, exchange: Exchange) -> dict[str, Any]:
    ident = exchange.request.path.removeprefix(_PREFIX).removesuffix("/cancel")
    entry = context.stored.get(ident)
    if entry is None:
        raise ApiError(404, f"Response with id '{ident[:200]}' not found.", param="response_id")
    return entry


def _keep(context: Context, asked: Asked, response: dict[str, Any]) -> None:
    context.stored[response["id"]] = {"response": response, "history": asked.history}
    while len(context.stored) > _STORED:
        del context.stored[next(iter(context.stored))]


def _understand(context: Context, body: dict[str, Any]) -> Asked:
    model = context.model(body)
    previous = fields.optional(body, "previous_response_id", str)
    messages: list[Any] = []
    if previous is not None:
        entry = context.stored.get(previous)
        if entry is None:
            message = f"Response with id '{previous[:200]}' not found."
            raise ApiError(404, message, param="previous_response_id")
        messages += entry["history"]
    messages += _messages(body)
    instructions = fields.optional(body, "instructions", str)
    said = [{"role": "system", "content": instructions}, *messages] if instructions else messages
    prompt = render(said)
    count = prompt_tokens(prompt)
    limit = limits(body, count, context.settings.max_model_len, "max_output_tokens")
    fields.number(body, "temperature", 1.0, 0.0, 2.0)
    shape = fields.optional(body, "text", dict) or {}
    seed = text.seed_of(body, "responses")
    choice = decide(
        context, seed, limit, wanted_calls(body, messages), wanted_schema(shape.get("format"), "text.format")
    )
    skeleton = {
        "id": text.ident("resp_", seed),
        "created_at": context.settings.created,
        "object": "response",
        "error": None,
        "instructions": instructions,
        "metadata": body.get("metadata"),
        "model": model,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "background": fields.flag(body, "background"),
        "max_output_tokens": limit.max_tokens,
        "max_tool_calls": None,
        "previous_response_id": previous,
        "prompt": None,
        "reasoning": body.get("reasoning"),
        "service_tier": "auto",
        "text": body.get("text"),
        "top_logprobs": None,
        "truncation": "disabled",
        "user": body.get("user"),
    }
    answer = {"role": "assistant", "content": choice.joined("content")}
    return Asked(skeleton, prompt, count, choice, seed, [*messages, answer])


def _messages(body: dict[str, Any]) -> list[Any]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise ApiError(400, "Field required: input", param="input")
    out: list[Any] = []
    for item in given:
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "function_call":
            out.append({"role": "assistant", "content": f"{item.get('name')}({item.get('arguments')})"})
        elif kind == "function_call_output":
            out.append({"role": "tool", "content": item.get("output")})
        elif kind == "reasoning":
            continue
        else:
            out.append(item)
    return out
