"""POST /v1/completions, plain and streamed: several prompts, n, echo, logprobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ..exchange import Exchange
from ..model import text, tokens
from ..model.runner import Ticket
from . import body as fields
from .context import Context
from .errors import ApiError
from .generation import Choice, Limits, limits, prompt_tokens, prose, usage
from .logprobs import completion_logprobs

_DEFAULT_TOKENS = 16
_MAX_CHOICES = 1024


@dataclass(slots=True)
class Completion:
    """A request, understood; one choice per prompt and n, in vLLM's order."""

    envelope: dict[str, Any]
    prompts: list[bytes]
    choices: list[Choice]
    prompt_tokens: int
    logprobs: int | None
    echo: bool
    include_usage: bool
    token_ids: bool


async def serve(context: Context, exchange: Exchange) -> None:
    """Answers one request."""
    body = fields.decode(exchange.request)
    asked = understand(context, body)
    jobs = (c.job(p) for c, p in zip(asked.choices, asked.prompts, strict=True))
    with context.runner.start(jobs) as ticket:
        if fields.flag(body, "stream"):
            await exchange.stream(_events(asked, ticket))
        else:
            await ticket.finish()
            await exchange.json(200, _plain(asked))


def understand(context: Context, body: dict[str, Any]) -> Completion:
    """Validates and decides the answer."""
    model = context.model(body)
    if body.get("prompt") is None:
        raise ApiError(400, "Field required: prompt", param="prompt")
    prompts = fields.texts(body["prompt"], "prompt")
    n = fields.integer(body, "n", 1, 1, 128)
    if len(prompts) * n > _MAX_CHOICES:
        raise ApiError(400, f"at most {_MAX_CHOICES} choices", param="n")
    fields.number(body, "temperature", 1.0, 0.0, 2.0)
    counts = [prompt_tokens(p) for p in prompts]
    limit = limits(body, max(counts), context.settings.max_model_len, "max_tokens")
    if limit.max_tokens is None:
        limit = Limits(_DEFAULT_TOKENS, limit.min_tokens, limit.ignore_eos, limit.stop)
    options = fields.optional(body, "stream_options", dict) or {}
    # what is said to a prompt depends on that prompt alone, as it does at temperature 0
    choices = [
        prose(text.seed_of(body | {"prompt": prompt}, f"cmpl {index}"), limit)
        for prompt in _each(body["prompt"])
        for index in range(n)
    ]
    return Completion(
        {
            "id": text.ident("cmpl-", text.seed_of(body, "cmpl")),
            "object": "text_completion",
            "created": context.settings.created,
            "model": model,
        },
        [p for p in prompts for _ in range(n)],
        choices,
        sum(counts),
        None if body.get("logprobs") is None else fields.integer(body, "logprobs", 0, 0, 20),
        fields.flag(body, "echo"),
        bool(options.get("include_usage")),
        fields.flag(body, "return_token_ids"),
    )


def _each(prompt: Any) -> list[Any]:
    """The prompts one by one: texts, or lists of token ids."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def _plain(asked: Completion) -> dict[str, Any]:
    choices = []
    for index, choice in enumerate(asked.choices):
        said = choice.joined("content")
        pieces = [u.text for u in choice.units()]
        before = asked.prompts[index].decode("utf-8", "replace") if asked.echo else ""
        logprobs = None
        if asked.logprobs is not None:
            logprobs = completion_logprobs(pieces, asked.logprobs, len(before))
        read = made_ids = None
        if asked.token_ids:
            read = tokens.encode(asked.prompts[index]) or [0]
            made_ids = [tokens.encode(piece.encode() or b"\0")[0] for piece in pieces]
        choices.append(
            _choice(index, before + said, logprobs, choice)
            | {"prompt_logprobs": None, "prompt_token_ids": read, "token_ids": made_ids}
        )
    made = sum(c.goal for c in asked.choices)
    return asked.envelope | {
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage(asked.prompt_tokens, made),
        "kv_transfer_params": None,
    }


async def _events(asked: Completion, ticket: Ticket) -> AsyncIterator[bytes]:
    units = [c.units() for c in asked.choices]
    offsets = [0] * len(asked.choices)
    sent = 0
    if asked.echo:
        for index, prompt in enumerate(asked.prompts):
            said = prompt.decode("utf-8", "replace")
            offsets[index] = len(said)
            yield _event(asked.envelope | {"choices": [_choice(index, said, None, None)]})
    async for ready in ticket:
        index = ready.choice
        for _ in range(ready.tokens):
            unit = next(units[index])
            sent += 1
            logprobs = None
            if asked.logprobs is not None:
                logprobs = completion_logprobs([unit.text], asked.logprobs, offsets[index])
            offsets[index] += len(unit.text)
            last = asked.choices[index] if ready.finished else None
            yield _event(asked.envelope | {"choices": [_choice(index, unit.text, logprobs, last)]})
    if asked.include_usage:
        yield _event(asked.envelope | {"choices": [], "usage": usage(asked.prompt_tokens, sent)})
    yield b"data: [DONE]\n\n"


def _choice(index: int, said: str, logprobs: dict[str, Any] | None, last: Choice | None) -> dict[str, Any]:
    return {
        "index": index,
        "text": said,
        "logprobs": logprobs,
        "finish_reason": last.reason if last else None,
        "stop_reason": last.stop_reason if last else None,
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
