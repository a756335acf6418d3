"""POST /tokenize and /detokenize."""

from __future__ import annotations

from ..exchange import Exchange
from ..model import tokens
from . import body as fields
from .chat import render
from .context import Context
from .errors import ApiError


async def tokenize(context: Context, exchange: Exchange) -> None:
    """A prompt or messages in, token ids out."""
    body = fields.decode(exchange.request)
    context.model(body)
    messages = fields.optional(body, "messages", list)
    if messages is not None:
        prompt = render(messages)
    else:
        prompt = fields.required(body, "prompt", str).encode("utf-8", "replace")
    ids = tokens.encode(prompt)
    strings = None
    if fields.flag(body, "return_token_strs"):
        strings = [tokens.decode([i]).decode("utf-8", "replace") for i in ids]
    await exchange.json(
        200,
        {
            "count": len(ids),
            "max_model_len": context.settings.max_model_len,
            "tokens": ids,
            "token_strs": strings,
        },
    )


async def detokenize(context: Context, exchange: Exchange) -> None:
    """Token ids in, their text out."""
    body = fields.decode(exchange.request)
    context.model(body)
    ids = fields.required(body, "tokens", list)
    try:
        said = tokens.decode(ids)
    except (ValueError, TypeError) as err:
        raise ApiError(400, f"tokens: {err}", param="tokens") from None
    await exchange.json(200, {"prompt": said.decode("utf-8", "replace")})
