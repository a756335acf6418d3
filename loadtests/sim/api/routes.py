"""Which function answers which path: vLLM's route table.

Unknown paths and methods get FastAPI's own answers, as vLLM's do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from ..exchange import Exchange
from . import audio, chat, completions, lifecycle, messages, pooling, responses, tokenize
from .context import Context

Handler = Callable[[Context, Exchange], Awaitable[None]]


class Route(NamedTuple):
    """`counted`: part of the load that /load reports."""

    call: Handler
    counted: bool = False


async def _missing(_: Context, exchange: Exchange) -> None:
    await exchange.json(404, {"detail": "Not Found"})


async def _wrong_method(_: Context, exchange: Exchange) -> None:
    await exchange.json(405, {"detail": "Method Not Allowed"})


_MISSING = Route(_missing)
_WRONG_METHOD = Route(_wrong_method)
_ROUTES: dict[str, dict[str, Route]] = {
    "/v1/chat/completions": {"POST": Route(chat.serve, True)},
    "/v1/completions": {"POST": Route(completions.serve, True)},
    "/v1/responses": {"POST": Route(responses.create, True)},
    "/v1/messages": {"POST": Route(messages.serve, True)},
    "/v1/messages/count_tokens": {"POST": Route(messages.count_tokens, True)},
    "/v1/embeddings": {"POST": Route(pooling.embeddings, True)},
    "/v1/rerank": {"POST": Route(pooling.rerank, True)},
    "/v2/rerank": {"POST": Route(pooling.rerank, True)},
    "/rerank": {"POST": Route(pooling.rerank, True)},
    "/v1/score": {"POST": Route(pooling.score, True)},
    "/score": {"POST": Route(pooling.score, True)},
    "/classify": {"POST": Route(pooling.classify, True)},
    "/pooling": {"POST": Route(pooling.pooling, True)},
    "/v1/audio/transcriptions": {"POST": Route(audio.transcriptions, True)},
    "/v1/audio/translations": {"POST": Route(audio.translations, True)},
    "/tokenize": {"POST": Route(tokenize.tokenize)},
    "/detokenize": {"POST": Route(tokenize.detokenize)},
    "/v1/models": {"GET": Route(lifecycle.models)},
    "/health": {"GET": Route(lifecycle.health)},
    "/ping": {"GET": Route(lifecycle.health), "POST": Route(lifecycle.health)},
    "/version": {"GET": Route(lifecycle.version)},
    "/metrics": {"GET": Route(lifecycle.metrics)},
    "/load": {"GET": Route(lifecycle.load)},
    "/sleep": {"POST": Route(lifecycle.sleep)},
    "/wake_up": {"POST": Route(lifecycle.wake_up)},
    "/is_sleeping": {"GET": Route(lifecycle.is_sleeping)},
    "/reset_prefix_cache": {"POST": Route(lifecycle.reset_prefix_cache)},
    "/collective_rpc": {"POST": Route(lifecycle.collective_rpc)},
}
_MODEL = {"GET": Route(lifecycle.model)}
_RESPONSE = {"GET": Route(responses.retrieve), "DELETE": Route(responses.delete)}
_CANCEL = {"POST": Route(responses.cancel)}


def find(method: str, path: str) -> Route:
    """The route for a request; always one, if only to say no."""
    methods = _ROUTES.get(path)
    if methods is None:
        if path.startswith("/v1/models/"):
            methods = _MODEL
        elif path.startswith("/v1/responses/"):
            methods = _CANCEL if path.endswith("/cancel") else _RESPONSE
        else:
            return _MISSING
    return methods.get(method, _WRONG_METHOD)


def encode(value: Any) -> bytes:
    """JSON as the replies use it."""
    return msgspec.json.encode(value)
