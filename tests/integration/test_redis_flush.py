"""A flush at one gateway reaches another on the same Redis: by its message, and without one by looking."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.asking import Question
from ..support.gateway import Gateway, gateway
from ..support.procs import console_script, run
from ..support.redis import RedisServer, redis_server
from ..support.sim import Simulator, simulator
from .redis_nodes import WATCHDOG_S, a_question, asked, config, in_step, waits

# Allowed everything but to tell others: what it flushes they have to see for themselves.
MUTE = ("on", ">quiet", "~penstock:*", "&penstock:*", "+@all", "-publish")
PASSWORD = {"TEST_REDIS_PASSWORD": "quiet"}


@dataclass
class Nodes:
    """`mute` may not publish, so that its messages are lost for sure."""

    sim: Simulator
    redis: RedisServer
    one: Gateway
    mute: Gateway
    two: Gateway


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with simulator(model="m", any_model=True, created=1) as sim, redis_server() as redis:
        redis.command("ACL", "SETUSER", "mute", *MUTE)
        plain = config(sim, redis.url)
        mute = config(sim, redis.url, username="mute", password_env="TEST_REDIS_PASSWORD")
        with (
            gateway(plain) as one,
            gateway(mute, env=PASSWORD) as silent,
            gateway(plain) as two,
        ):
            in_step(one, silent, two)
            yield Nodes(sim, redis, one, silent, two)


def _key_of(gate: Gateway, question: Question, folder: Path) -> str:
    file = folder / "question.json"
    file.write_text(json.dumps(question.body))
    _, said = run([console_script(), "cache", "explain", str(file), "-c", str(gate.file)], env=PASSWORD)
    found = re.search(r"^key +([0-9a-f]{64})$", said, re.M)
    assert found, said
    return found[1]


def _flush(gate: Gateway, what: dict[str, Any]) -> None:
    said = httpx.post(f"{gate.admin_url}/gateway/cache/flush", json=what, trust_env=False, timeout=20)
    assert (said.status_code, said.json()["other_nodes"]) == (200, "told")


async def _warm(nodes: Nodes, *questions: Question) -> None:
    for gate in (nodes.one, nodes.mute, nodes.two):
        for question in questions:
            while (await asked(gate, question)).cache != "HIT-L1":
                pass


async def _until_not_near(gate: Gateway, question: Question) -> str:
    """Ask until it is no longer answered from shared memory; what it met then."""
    async with asyncio.timeout(WATCHDOG_S):
        while (met := (await asked(gate, question)).cache) == "HIT-L1":
            pass
    return met


@pytest.mark.parametrize(
    ("what", "told"),
    [*((what, True) for what in ("all", "model", "tenant", "key")), ("model", False)],
)
async def test_a_flush_is_seen_by_another_node(nodes: Nodes, tmp_path: Path, what: str, told: bool) -> None:
    gate = nodes.one if told else nodes.mute
    question, other = a_question(), a_question(model="brief")
    await _warm(nodes, question, other)
    value: Any = {"all": True, "model": "m", "tenant": "default"}.get(what)
    published, refused = _published(nodes.redis)
    _flush(gate, {what: value or _key_of(gate, question, tmp_path)})
    # here at once, and what Redis has of it is not believed either
    assert (await asked(gate, question)).cache == "MISS"
    # this node has stored it anew, so the other may find that
    assert await _until_not_near(nodes.two, question) in ("MISS", "HIT-L2")
    assert (await asked(nodes.two, question)).cache == "HIT-L1"
    spared = what in ("model", "key")
    assert ((await asked(nodes.two, other)).cache == "HIT-L1") is spared
    now = _published(nodes.redis)
    assert now == ((published + 1, refused) if told else (published, refused + 1))


def _published(redis: RedisServer) -> tuple[int, int]:
    """Messages that were sent, and that were forbidden."""
    row = redis.info("commandstats").get("cmdstat_publish", {})
    return int(row.get("calls", 0)), int(row.get("rejected_calls", 0))


async def test_the_command_line_flushes_other_nodes_too(nodes: Nodes) -> None:
    question = a_question()
    await _warm(nodes, question)
    status, said = run([console_script(), "cache", "flush", "--all", "-c", str(nodes.one.file)])
    assert status == 0, said
    assert await _until_not_near(nodes.two, question) == "MISS"


async def test_a_subscription_that_was_cut_is_made_anew_and_what_it_missed_is_seen(nodes: Nodes) -> None:
    question = a_question()
    await _warm(nodes, question)
    assert int(nodes.redis.command("CLIENT", "KILL", "TYPE", "pubsub")) >= 2
    _flush(nodes.one, {"model": "m"})
    assert await _until_not_near(nodes.two, question) == "MISS"


async def test_an_answer_that_was_on_its_way_when_its_model_was_flushed_is_not_believed_anywhere(
    nodes: Nodes,
) -> None:
    question = a_question()
    nodes.sim.faults({"kind": "hang", "stage": "headers"})
    asking = asyncio.create_task(asked(nodes.one, question))
    await waits(lambda: nodes.sim.stats()["in_flight"] == 1, "it has reached the server")
    _flush(nodes.two, {"model": "m"})
    nodes.sim.faults({})
    assert (await asking).cache == "MISS"
    assert (await asked(nodes.two, question)).cache == "MISS", "it was asked for before the flush"
