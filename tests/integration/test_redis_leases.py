"""The same question to two gateways at once: one of them asks, as long as its lease in Redis says so."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from ..support.asking import Asker, Question, Reply
from ..support.gateway import Gateway, gateway
from ..support.procs import is_running
from ..support.redis import RedisServer, redis_server
from ..support.sim import Simulator, simulator
from .redis_nodes import a_question, asked, config, in_step, upstream, waits

EACH = 12
FOR_EVER_MS = 600_000
HANG = {"kind": "hang", "stage": "headers"}


@dataclass
class Pair:
    sim: Simulator
    redis: RedisServer
    one: Gateway
    two: Gateway

    async def reached(self, count: int) -> None:
        """Until so many requests have reached the server, in all."""
        await waits(lambda: upstream(self.sim) >= count, f"{count} upstream calls")

    async def polled(self) -> None:
        """Until Redis was asked a few times more, as a node that waits for another one does."""
        goal = self.redis.calls("mget") + 5
        await waits(lambda: self.redis.calls("mget") >= goal, "more look-ups")


@contextmanager
def _pair(lease_ms: int, workers: int = 1) -> Iterator[Pair]:
    with simulator(model="m", any_model=True, created=1) as sim, redis_server() as redis:
        both = config(sim, redis.url, lease_ms=lease_ms)
        both["workers"] = {"count": workers}
        with gateway(both) as one, gateway(both) as two:
            in_step(one, two)
            yield Pair(sim, redis, one, two)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """With a lease that never ends by itself, and two workers each."""
    with _pair(FOR_EVER_MS, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def brief() -> Iterator[Pair]:
    """With a lease of 300 ms."""
    with _pair(300) as made:
        yield made


def _many(gate: Gateway, question: Question, count: int = EACH) -> list[asyncio.Task[Reply]]:
    return [asyncio.create_task(asked(gate, question)) for _ in range(count)]


def _met(replies: list[Reply]) -> set[str]:
    return {reply.cache for reply in replies}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_identical_questions_to_two_nodes_at_once_are_one_upstream_call(
    pair: Pair, stream: bool
) -> None:
    question, before = a_question(stream=stream), upstream(pair.sim)
    pair.sim.faults(HANG)
    tasks = _many(pair.one, question) + _many(pair.two, question)
    await pair.polled()
    pair.sim.faults({})
    replies = await asyncio.gather(*tasks)
    assert upstream(pair.sim) == before + 1
    one, two = replies[:EACH], replies[EACH:]
    leading, waited = (one, two) if "MISS" in _met(one) else (two, one)
    assert sum(reply.cache == "MISS" for reply in leading) == 1
    assert "COALESCED" in _met(leading)
    assert "HIT-L2" in _met(waited)
    assert "MISS" not in _met(waited)


async def test_without_a_lease_each_node_asks() -> None:
    with _pair(0) as free:
        question = a_question()
        free.sim.faults(HANG)
        tasks = _many(free.one, question) + _many(free.two, question)
        await free.reached(2)
        free.sim.faults({})
        replies = await asyncio.gather(*tasks)
        assert sum(reply.cache == "MISS" for reply in replies) == upstream(free.sim) == 2


async def test_a_lease_is_kept_as_long_as_its_node_asks(brief: Pair) -> None:
    question, before = a_question(), upstream(brief.sim)
    prolonged = brief.redis.calls("pexpire")
    brief.sim.faults(HANG)
    tasks = _many(brief.one, question)
    await brief.reached(before + 1)
    tasks += _many(brief.two, question)
    # three times in its length: this is twice as long as it would last
    await waits(lambda: brief.redis.calls("pexpire") >= prolonged + 7, "a lease twice its length")
    brief.sim.faults({})
    await asyncio.gather(*tasks)
    assert upstream(brief.sim) == before + 1


async def test_a_stream_waits_for_another_node_as_long_as_a_lease_lasts_and_then_asks_itself(
    brief: Pair,
) -> None:
    question, before = a_question(stream=True), upstream(brief.sim)
    brief.sim.faults(HANG)
    tasks = _many(brief.one, question)
    await brief.reached(before + 1)
    tasks += _many(brief.two, question)
    await brief.reached(before + 2)
    brief.sim.faults({})
    replies = await asyncio.gather(*tasks)
    assert upstream(brief.sim) == before + 2
    assert sum(reply.cache == "MISS" for reply in replies) == 2


async def test_when_upstream_fails_the_lease_is_given_up_and_the_other_node_asks(pair: Pair) -> None:
    question, before = a_question(model="brief"), upstream(pair.sim)
    pair.sim.faults({**HANG, "count": 1})  # longer than this model may take to begin
    async with Asker(pair.one.port) as leader:
        failing = asyncio.create_task(leader.ask(question))
        await pair.reached(before + 1)
        replies = await asyncio.gather(*_many(pair.two, question))
        assert (await failing).status == 504
    assert upstream(pair.sim) == before + 2
    assert sum(reply.cache == "MISS" for reply in replies) == 1
    pair.sim.faults({})


async def test_when_its_last_client_leaves_a_node_gives_up_and_the_other_asks(pair: Pair) -> None:
    question, before = a_question(), upstream(pair.sim)
    pair.sim.faults({**HANG, "count": 1})
    async with Asker(pair.one.port) as leader:
        left = asyncio.create_task(leader.ask(question))
        await pair.reached(before + 1)
        tasks = _many(pair.two, question)
        await pair.polled()
        left.cancel()
    await asyncio.wait([left])
    replies = await asyncio.gather(*tasks)
    assert upstream(pair.sim) == before + 2
    assert sum(reply.cache == "MISS" for reply in replies) == 1
    pair.sim.faults({})


async def test_when_what_came_is_not_stored_the_other_node_asks(pair: Pair) -> None:
    question, before = a_question(stream=True), upstream(pair.sim)
    pair.sim.faults({"kind": "no_terminal", "count": 1})
    async with Asker(pair.one.port) as leader:
        cut = await leader.ask(question)
    assert b"[DONE]" not in cut.body
    assert (await asked(pair.two, question)).cache == "MISS"
    assert upstream(pair.sim) == before + 2
    pair.sim.faults({})


async def test_clients_that_leave_while_their_node_waits_take_nothing_with_them(pair: Pair) -> None:
    question, before = a_question(), upstream(pair.sim)
    pair.sim.faults(HANG)
    tasks = _many(pair.one, question)
    await pair.reached(before + 1)
    first = Asker(pair.two.port)
    leaving = asyncio.create_task(first.ask(question))
    await pair.polled()
    tasks += _many(pair.two, question)
    await pair.polled()
    leaving.cancel()
    await asyncio.wait([leaving])
    first.leave()
    await pair.polled()
    pair.sim.faults({})
    replies = await asyncio.gather(*tasks)
    assert upstream(pair.sim) == before + 1
    assert "MISS" not in _met(replies[EACH:])


async def test_when_the_node_that_asks_is_killed_another_asks_once_and_answers_all(brief: Pair) -> None:
    question, before = a_question(), upstream(brief.sim)
    brief.sim.faults(HANG)
    lost = _many(brief.one, question)
    await brief.reached(before + 1)
    tasks = _many(brief.two, question)
    await brief.polled()
    assert upstream(brief.sim) == before + 1
    everybody = [brief.one.pid, *brief.one.worker_pids(), brief.one.controller_pid()]
    for pid in filter(None, everybody):
        os.kill(pid, signal.SIGKILL)
    brief.one.proc.wait()
    await waits(lambda: not any(map(is_running, filter(None, everybody))), "all of it is gone")
    assert all(isinstance(end, Exception) for end in await asyncio.gather(*lost, return_exceptions=True))
    await brief.reached(before + 2)
    brief.sim.faults({})
    replies = await asyncio.gather(*tasks)
    assert upstream(brief.sim) == before + 2
    assert sum(reply.cache == "MISS" for reply in replies) == 1
