"""Two gateways on one Redis: what one was told the other knows, in the same bytes and of the same age."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ..support.asking import Question, Reply, ask
from ..support.gateway import Gateway, gateway
from ..support.redis import redis_server
from ..support.sim import Simulator, simulator
from .redis_nodes import a_question, asked, config, in_step, upstream


@dataclass
class Nodes:
    """Two gateways. What `two` keeps near lives for two seconds; `bare` keeps nothing near."""

    sim: Simulator
    one: Gateway
    two: Gateway
    bare: Gateway


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with simulator(model="m", any_model=True, created=1, decode_ms=2) as sim, redis_server() as redis:
        lease = {"lease_ms": 120_000}  # longer than any test here lasts: what waits for one in vain, hangs
        short = config(sim, redis.url, {"size": "32MiB", "ttl_s": 2}, **lease)
        bare = config(sim, redis.url, {"size": 0}, **lease)
        with (
            gateway(config(sim, redis.url, **lease)) as one,
            gateway(short) as two,
            gateway(bare) as three,
        ):
            in_step(one, two, three)
            yield Nodes(sim, one, two, three)


async def _as_sent(nodes: Nodes, question: Question, first: Reply) -> Callable[[Reply], bool]:
    """Whether a later answer has the bytes of the first one, in the pieces in which the server sends them."""
    server = await ask(nodes.sim.port, question)
    assert first.body == server.body
    kind = first.headers["content-type"]
    return lambda reply: reply.pieces == server.pieces and reply.headers["content-type"] == kind


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_what_one_node_was_told_another_answers_from_redis_and_then_from_memory(
    nodes: Nodes, stream: bool
) -> None:
    question, before = a_question(stream=stream), upstream(nodes.sim)
    first = await asked(nodes.one, question)
    assert first.cache == "MISS"
    # until the entry is in Redis a lease is, so that the other node waits instead of asking
    second = await asked(nodes.two, question)
    third = await asked(nodes.two, question)
    own = await asked(nodes.one, question)
    assert [second.cache, third.cache, own.cache] == ["HIT-L2", "HIT-L1", "HIT-L1"]
    assert upstream(nodes.sim) == before + 1
    assert all(map(await _as_sent(nodes, question, first), (second, third, own)))
    assert len(own.pieces) == (10 if stream else 1)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_without_shared_memory_redis_answers_every_time(nodes: Nodes, stream: bool) -> None:
    question, before = a_question(stream=stream), upstream(nodes.sim)
    first = await asked(nodes.one, question)
    again = [await asked(nodes.bare, question) for _ in range(3)]
    assert [reply.cache for reply in again] == ["HIT-L2"] * 3
    assert upstream(nodes.sim) == before + 1
    assert all(map(await _as_sent(nodes, question, first), again))
    own = a_question(stream=stream)
    assert (await asked(nodes.bare, own)).cache == "MISS"
    assert (await asked(nodes.one, own)).cache == "HIT-L2"
    assert (await asked(nodes.bare, own)).cache == "HIT-L2"


async def test_an_answer_grows_old_on_every_node_alike(nodes: Nodes) -> None:
    question = a_question()
    await asked(nodes.one, question)
    while (await asked(nodes.one, question)).age_s < 1:
        pass
    far = await asked(nodes.two, question)
    assert (far.cache, far.age_s >= 1) == ("HIT-L2", True), "its age is the answer's, not the node's"
    assert (await asked(nodes.two, question)).age_s >= 1
    assert (await asked(nodes.bare, question, cache_control="max-age=3600")).cache == "HIT-L2"
    young = await asked(nodes.bare, question, cache_control="max-age=0")
    assert young.cache == "MISS", "older than this client accepts"


async def test_the_life_that_a_request_asks_for_ends_on_every_node(nodes: Nodes) -> None:
    question = a_question()
    assert (await asked(nodes.one, question, x_penstock_cache_ttl="2")).cache == "MISS"
    met = []
    while "MISS" not in met:
        reply = await asked(nodes.two, question, x_penstock_cache_ttl="2")
        met.append(reply.cache)
        assert reply.cache == "MISS" or reply.age_s <= 2
    assert met[0] == "HIT-L2"
    assert "HIT-L1" in met


async def test_what_was_fetched_from_redis_lives_near_as_long_as_what_is_near(nodes: Nodes) -> None:
    question, before = a_question(), upstream(nodes.sim)
    await asked(nodes.one, question)
    met = [(await asked(nodes.two, question)).cache]
    while met[-1] != "HIT-L2" or "HIT-L1" not in met:
        met.append((await asked(nodes.two, question)).cache)
    assert set(met) == {"HIT-L1", "HIT-L2"}
    assert upstream(nodes.sim) == before + 1


async def test_a_namespace_is_apart_in_redis_too(nodes: Nodes) -> None:
    text = a_question().text
    apart = Question(text, more=(("cache", {"namespace": "apart"}),))
    assert (await asked(nodes.one, Question(text))).cache == "MISS"
    assert (await asked(nodes.two, apart)).cache == "MISS"
    assert (await asked(nodes.one, apart)).cache == "HIT-L2"


async def test_what_may_not_be_stored_takes_no_lease_from_others(nodes: Nodes) -> None:
    question, before = a_question(), upstream(nodes.sim)
    assert (await asked(nodes.one, question, cache_control="no-store")).cache == "BYPASS"
    assert (await asked(nodes.two, question)).cache == "MISS"
    assert upstream(nodes.sim) == before + 2
    assert (await asked(nodes.one, question)).cache == "HIT-L2"
