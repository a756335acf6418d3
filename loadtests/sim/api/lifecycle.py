"""The server's own endpoints: models, health, version, metrics, load, and the routes of vLLM's development mode."""

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
    """POST /sleep?level=1|2&mode=abort|wait|keep: what runs is aborted, waited for or held; 2 drops the weights."""
    _dev_mode(context)
    given = exchange.request.parameters()
    level, mode = given.get("level", ["1"])[0], given.get("mode", ["abort"])[0]
    if level not in ("0", "1", "2"):
        raise ApiError(400, "level must be 0, 1 or 2", param="level")
    if mode == "abort":
        context.runner.abort()
    elif mode == "wait":
        await context.runner.drained()
    elif mode != "keep":
        raise ApiError(400, "Input should be 'abort', 'wait' or 'keep'", param="mode")
    context.sleeping.sleep(int(level))
    context.runner.pause()
    if level != "0":
        context.runner.engine.prefix.clear()
    await exchange.json(200, {"status": "sleeping", "level": int(level)})


async def wake_up(context: Context, exchange: Exchange) -> None:
    """POST /wake_up?tags=weights|kv_cache: takes `wake_s` where weights come back from main memory."""
    _dev_mode(context)
    tags = exchange.request.parameters().get("tags")
    if context.sleeping.copies_weights(tags):
        await asyncio.sleep(context.settings.wake_s)
        context.sleeping.waking_s += context.settings.wake_s
    awake = context.sleeping.wake(tags)
    if awake:
        context.runner.resume()
    await exchange.json(200, {"status": "awake" if awake else "sleeping", "tags": tags})


async def is_sleeping(context: Context, exchange: Exchange) -> None:
    """GET /is_sleeping."""
    _dev_mode(context)
    await exchange.json(200, {"is_sleeping": context.asleep})


async def reset_prefix_cache(context: Context, exchange: Exchange) -> None:
    """POST /reset_prefix_cache."""
    _dev_mode(context)
    context.runner.engine.prefix.clear()
    await exchange.reply(200, b"", b"text/plain")


async def collective_rpc(context: Context, exchange: Exchange) -> None:
    """POST /collective_rpc {"method": "reload_weights"}, the only method here: takes `reload_s`."""
    _dev_mode(context)
    method = decode(exchange.request).get("method")
    if method != "reload_weights":
        raise ApiError(400, "Missing or unknown 'method' in request body")
    await asyncio.sleep(context.settings.reload_s)
    context.sleeping.waking_s += context.settings.reload_s
    if not context.sleeping.reload():
        raise ApiError(500, "CUDA error: an illegal memory access was encountered")
    await exchange.json(200, {"results": [None]})


def _dev_mode(context: Context) -> None:
    """Without VLLM_SERVER_DEV_MODE these routes do not exist."""
    if not context.settings.dev_mode:
        raise ApiError(404, "Not Found")


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
