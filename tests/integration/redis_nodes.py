"""Gateways that share one Redis, as the tests of what they do together need them."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx

from ..support.asking import Question, Reply, ask
from ..support.gateway import Gateway
from ..support.procs import wait_until
from ..support.sim import Simulator

_number = itertools.count()

WATCHDOG_S = 30.0


def a_question(*, stream: bool = False, model: str = "m", **more: Any) -> Question:
    """One that nobody has asked before; further keywords are further fields of its body."""
    return Question(f"question {next(_number)}", stream, model, tuple(more.items()))


def config(sim: Simulator, url: str, l1: dict[str, Any] | None = None, **l2: Any) -> dict[str, Any]:
    """A gateway before the simulator with two names for it; `brief` waits one second for an answer to begin.

    Its deadline for Redis is far, because a busy machine answers late and few tests are about that.
    """
    backend = {"backends": [{"url": sim.url}], "max_concurrent": 200}
    return {
        "models": {"m": backend, "brief": {**backend, "timeouts": {"first_byte_s": 1}}},
        "cache": {"l1": l1 or {"size": "32MiB"}, "l2": {"url": url, "deadline_ms": 5000, **l2}},
    }


def stats(gate: Gateway) -> dict[str, Any]:
    """What its admin port says of the cache."""
    answer = httpx.get(f"{gate.admin_url}/gateway/cache/stats", trust_env=False, timeout=20)
    answer.raise_for_status()
    said: dict[str, Any] = answer.json()
    return said


def in_step(*gates: Gateway) -> None:
    """Wait until they use Redis."""
    for gate in gates:
        wait_until(lambda gate=gate: stats(gate)["l2"]["synced"], what="in step with Redis")


def upstream(sim: Simulator) -> int:
    """Requests that have reached the server, those that are not answered yet too."""
    said = sim.stats()
    asked: int = said["paths"].get("/v1/chat/completions", {}).get("total", 0)
    return asked + int(said["in_flight_by_path"].get("/v1/chat/completions", 0))


async def waits(true: Any, what: str) -> None:
    """`wait_until` beside a loop that goes on."""
    await asyncio.to_thread(wait_until, true, WATCHDOG_S, what)


async def asked(gate: Gateway, question: Question, **headers: str) -> Reply:
    """One answer, which must be right, and must come."""
    async with asyncio.timeout(WATCHDOG_S):
        reply = await ask(gate.port, question, **headers)
    assert reply.answers(question), (reply.status, reply.body)
    return reply
