"""The server's own endpoints: models, health, version, metrics, load, and vLLM's sleep mode (dev mode's routes)."""

from __future__ import annotations

import asyncio
from typing import Any

from ..exchange import Exchange
from .body import decode
from .context import Context
from .errors import ApiError

VERSION = "0.11.0"
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


async def health(_: Context, exchange: Exchange) -> None:
    """GET /health: 200 with an empty body."""
    await exchange.reply(200, b"", b"text/plain")


async def version(_: Context, exchange: Exchange) -> None:
    """GET /version."""
    await exchange.json(200, {"version": VERSION})


async def metrics(context: Context, exchange: Exchange) -> None:
    """GET /metrics."""
    await exchange.reply(200, context.metrics.render(asleep=context.asleep), _PROMETHEUS)


async def load(context: Context, exchange: Exchange) -> None:
    """GET /load: requests in flight, as vLLM with --enable-server-load-tracking."""
    await exchange.json(200, {"server_load": context.load})


async def models(context: Context, exchange: Exchange) -> None:
    """GET /v1/models."""
    await exchange.json(200, {"object": "list", "data": [_card(context, m) for m in context.settings.models]})


async def model(context: Context, exchange: Exchange) -> None:
    """GET /v1/models/{id}."""
    name = exchange.request.path.removeprefix("/v1/models/")
    if name not in context.settings.models:
        raise ApiError(404, f"The model `{name[:200]}` does not exist.", param="model")
    await exchange.json(200, _card(context, name))


async def sleep(context: Context, exchange: Exchange) -> None:
    """POST /sleep?level=1|2: generation stops where it is; level 2 drops the weights."""
    level = exchange.request.parameters().get("level", ["1"])[0]
    if level not in ("0", "1", "2"):
        raise ApiError(400, "level must be 0, 1 or 2", param="level")
    context.asleep = True
    context.runner.pause()
    context.runner.engine.prefix.clear()
    context.gibberish = context.gibberish or level == "2"
    await exchange.reply(200, b"", b"text/plain")


async def wake_up(context: Context, exchange: Exchange) -> None:
    """POST /wake_up: takes `wake_s`; after level 2 the weights still have to be reloaded."""
    if context.asleep:
        await asyncio.sleep(context.settings.wake_s)
        context.asleep = False
        context.runner.resume()
    await exchange.reply(200, b"", b"text/plain")


async def is_sleeping(context: Context, exchange: Exchange) -> None:
    """GET /is_sleeping."""
    await exchange.json(200, {"is_sleeping": context.asleep})


async def reset_prefix_cache(context: Context, exchange: Exchange) -> None:
    """POST /reset_prefix_cache."""
    context.runner.engine.prefix.clear()
    await exchange.reply(200, b"", b"text/plain")


async def collective_rpc(context: Context, exchange: Exchange) -> None:
    """POST /collective_rpc {"method": "reload_weights"}: the only method here."""
    method = decode(exchange.request).get("method")
    if method != "reload_weights":
        raise ApiError(400, "Missing or unknown 'method' in request body")
    context.gibberish = False
    await exchange.json(200, {"results": [None]})


def _card(context: Context, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": context.settings.created,
        "owned_by": "vllm",
        "root": name,
        "parent": None,
        "max_model_len": context.settings.max_model_len,
        "permission": [],
    }
