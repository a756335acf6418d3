"""`/proxy/*`: the paths that were written for vLLM-Chill, in its shapes, answered from this gateway's pools.

One model is "active" there. Here several may be: the active one is the pool that became ready last, else the one that
is on its way, else none. What has no counterpart is empty, never missing, so that typed clients go on working.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..gateway.config import Published
from .answer import Answer, Refused
from .pools_admin import PoolsAdmin, body_of
from .question import Question
from .served import served

STATS_S = 1.0
"""For so long the figures of GPUs are given again."""
_ON_ITS_WAY = ("starting", "draining", "stopping")


class _Switch(msgspec.Struct):
    model_id: str


class ProxyAdmin:
    """published: the current generation. gpus: the figures of this node's GPUs; clock: seconds, monotonic."""

    __slots__ = ("_clock", "_gpus", "_pools", "_published", "_stats", "_stats_at", "_version")

    def __init__(
        self,
        pools: PoolsAdmin,
        published: Callable[[], Published],
        gpus: Callable[[], Awaitable[list[dict[str, Any]]]],
        clock: Callable[[], float],
        version: str,
    ) -> None:
        self._pools = pools
        self._published = published
        self._gpus = gpus
        self._clock = clock
        self._version = version
        self._stats: Answer | None = None
        self._stats_at = 0.0

    async def available(self, _: Question) -> Answer:
        """GET models/available: every model of the configuration."""
        models = []
        for name, model in self._published().config.models.items():
            what = served(name, model)
            models.append(
                {
                    "name": name,
                    "servedModelName": name,
                    "modelName": what.model,
                    "maxModelLen": what.max_model_len,
                }
            )
        return Answer.of({"models": models, "count": len(models)})

    async def running(self, _: Question) -> Answer:
        """GET models/running: the active model."""
        name, phase = self._active()
        config = {
            "modelName": "",
            "servedModelName": name,
            "maxModelLen": 0,
            "toolCallParser": "",
            "reasoningParser": "",
        }
        if name:
            what = served(name, self._published().config.models[name])
            config |= {
                "modelName": what.model,
                "maxModelLen": what.max_model_len,
                "toolCallParser": what.tool_call_parser,
                "reasoningParser": what.reasoning_parser,
            }
        return Answer.of({"active_model": name, "running": phase == "ready", "config": config})

    async def switch(self, question: Question) -> Answer:
        """POST models/switch: another active model."""
        name = self._pools.find(body_of(question, _Switch, "give model_id").model_id, "model_id")
        self._pools.switch_to(name)
        return Answer.of(
            {
                "message": f"switching to {name}",
                "active_model": name,
                "note": "requests for it wait until it is ready; other models are stopped when nothing is in flight",
            }
        )

    async def start(self, _: Question) -> Answer:
        """POST operations/start: the active model, else the first that has a pool."""
        name = self._active()[0] or next((name for name, _ in self._pools.with_pools()), "")
        if not name:
            raise Refused(409, "no model has a pool: all are always on", "no_pool")
        self._pools.have_ready(name)
        return _done(f"{name} is started")

    async def stop(self, _: Question) -> Answer:
        """POST operations/stop: all that may be."""
        names = [name for name, _ in self._pools.with_pools() if self._pools.may_stop(name)]
        if not names:
            raise Refused(409, "no model has a pool that may be stopped", "no_pool")
        self._pools.have_off(names)
        return _done(f"{', '.join(names)}: stopped when nothing is in flight")

    async def stats(self, _: Question) -> Answer:
        """GET stats: this node's GPUs, by NVML; none where there is none."""
        now = self._clock()
        if self._stats is not None and now - self._stats_at < STATS_S:
            return Answer(self._stats.body, headers=(("x-cache", "HIT"),))
        self._stats_at = now
        told = {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "gpus": await self._gpus()}
        self._stats = Answer(msgspec.json.encode(told), headers=(("x-cache", "MISS"),))
        return self._stats

    async def version(self, _: Question) -> Answer:
        """GET version."""
        return Answer.of({"version": self._version})

    def _active(self) -> tuple[str, str]:
        """The active model and what its pool is doing; empty where there is none."""
        reports = self._pools.reports()
        ready = [name for name, one in reports.items() if one["phase"] == "ready"]
        if ready:
            return min(ready, key=lambda name: float(reports[name]["ready_for_s"] or 0.0)), "ready"
        return next(
            ((name, one["phase"]) for name, one in reports.items() if one["phase"] in _ON_ITS_WAY), ("", "")
        )


def _done(message: str) -> Answer:
    return Answer.of({"status": "success", "message": message})
