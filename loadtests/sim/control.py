"""`/sim/*`: what tests and operators use to look inside and to switch faults. No fault touches it.

GET /sim/stats · GET, POST, DELETE /sim/faults · POST /sim/reset. POST /sim/faults takes one fault, a list, or
{"faults": […]}, which replace those switched on before; nothing in it, or {"kind": "none"}, switches all off.
In the stats `engine.prefix_queries` and `prefix_hits` are prompt tokens looked for and found in the prefix cache;
`sleep` counts sleeps, wakes and loads of weights, and says what those took by the settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from .api.context import Context
from .api.errors import ApiError
from .exchange import Exchange
from .faults import Fault, Faults


class Control:
    """`refuse(seconds, drop_idle)` is the server's: it closes the listener for a while."""

    def __init__(self, context: Context, faults: Faults, refuse: Callable[[float, bool], None]) -> None:
        self._context = context
        self._faults = faults
        self._refuse = refuse

    async def serve(self, exchange: Exchange) -> None:
        """Answers one control request."""
        method, path = exchange.request.method, exchange.request.path
        if (method, path) == ("GET", "/sim/stats"):
            await exchange.json(200, self._stats())
        elif (method, path) == ("POST", "/sim/reset"):
            self._faults.clear()
            self._context.stats.reset()
            await exchange.json(200, {"status": "ok"})
        elif (method, path) == ("POST", "/sim/faults"):
            added = self._add(exchange.request.body)
            for fault in added:
                if fault.kind == "refuse":
                    self._refuse(fault.parameters["seconds"], fault.parameters["drop_idle"])
            # The loop closes listeners in its next round; who gets this answer is refused from here on.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await exchange.json(200, {"faults": self._faults.describe()})
        elif (method, path) == ("DELETE", "/sim/faults"):
            self._faults.clear()
            await exchange.json(200, {"faults": []})
        elif (method, path) == ("GET", "/sim/faults"):
            await exchange.json(200, {"faults": self._faults.describe()})
        else:
            raise ApiError(404, "Not Found")

    def _stats(self) -> dict[str, Any]:
        engine = self._context.runner.engine
        return self._context.stats.snapshot() | {
            "engine": {
                "running": engine.running,
                "waiting": engine.waiting,
                "kv_usage": engine.kv_usage,
                "prompt_tokens": engine.totals.prompt_tokens,
                "generation_tokens": engine.totals.generation_tokens,
                "preemptions": engine.totals.preemptions,
                "prefix_queries": engine.totals.prefix_queries,
                "prefix_hits": engine.totals.prefix_hits,
                "prefix_hit_rate": engine.totals.prefix_hits / max(1, engine.totals.prefix_queries),
                "asleep": self._context.asleep,
            },
            "sleep": {
                "sleeps": self._context.sleeping.sleeps,
                "wakes": self._context.sleeping.wakes,
                "reloads": self._context.sleeping.reloads,
                "waking_s": self._context.sleeping.waking_s,
                "startup_s": self._context.settings.startup_s,
            },
            "faults": self._faults.describe(),
        }

    def _add(self, raw: bytes) -> list[Fault]:
        if len(raw) > 1 << 20:
            raise ApiError(413, "too large")
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as err:
            raise ApiError(400, f"not JSON: {err}") from None
        if isinstance(body, dict) and "faults" in body:
            body = body["faults"]
        specs = [body] if isinstance(body, dict) else body
        if not isinstance(specs, list) or not all(isinstance(s, dict) for s in specs):
            raise ApiError(400, "a fault, or a list of faults")
        try:
            return self._faults.replace([s for s in specs if s and s.get("kind") != "none"])
        except ValueError as err:
            raise ApiError(400, str(err)) from None
