"""Nodes that share limits through a real Redis: one minute for all of them, and each its share without it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest

from penstock.cache.redis_client import Client, RedisSettings, client, close
from penstock.gateway.caller import Caller
from penstock.gateway.errors import Fault
from penstock.gateway.limits.grant import Grant
from penstock.workers.limits_sync import AWAY_NS, NODE_EVERY_NS, LimitsSync
from tests.support.redis import RedisServer, redis_server
from tests.unit.limiting import MS, START_NS, Cells, Clock, asked, key
from tests.unit.test_limits import ended, reserved, stripe


class Behind(Clock):
    """Another clock's time, a week off."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self) -> int:
        return self._clock.now + 7 * 86_400_000 * MS


class Node:
    """A node with two workers, and its controller's part."""

    def __init__(self, server: RedisServer, clock: Clock, name: str) -> None:
        self.clock = clock
        self.cells = Cells(clock)
        self.workers = [self.cells.worker(i, 2) for i in range(2)]
        self.settings = RedisSettings(server.url)
        self.redis: Client = client(self.settings)
        self.name = name
        self.sync = self.controller()

    def controller(self) -> LimitsSync:
        return LimitsSync(self.cells.segment, self.settings, "t", self.name, clock_ns=self.clock)

    def ask(self, caller: Caller, times: int = 1) -> int:
        """How many of so many requests are admitted by each worker."""
        return sum(isinstance(asked(w, caller), Grant) for w in self.workers for _ in range(times))

    def owed_ms(self) -> list[float]:
        state = stripe(self.cells)
        return [(state[at] - self.clock()) / MS for at in (0, 2)]


class World:
    """Two nodes and a Redis whose time is the test's too: what it keeps is moved by as much as its own clock is off."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.clock = Clock()
        self.a = Node(server, self.clock, "a")
        self.b = Node(server, Behind(self.clock), "b")
        self._began = time.monotonic_ns()
        self._moved_ns = 0

    async def sync(self, *nodes: Node) -> None:
        """A round of these nodes, or of both."""
        for node in nodes or (self.a, self.b):
            await node.sync.round(node.redis)

    async def later(self, ms: int) -> None:
        self.clock.now += ms * MS
        off = self.clock.now - START_NS - (time.monotonic_ns() - self._began)
        by_us = (off - self._moved_ns) // 1000
        self._moved_ns += by_us * 1000
        redis = self.a.redis
        for name in await redis.keys("t:{limits}:*"):
            if not name.endswith(b":nodes"):
                words = [max(0, int(word) - by_us) for word in (await redis.get(name)).split()]
                await redis.set(name, " ".join(map(str, words)), keepttl=True)

    async def close(self) -> None:
        for node in (self.a, self.b):
            await close(node.redis)
            node.cells.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(maxmemory_policy="noeviction") as made:
        yield made


@pytest.fixture
async def world(server: RedisServer) -> AsyncIterator[World]:
    made = World(server)
    yield made
    await made.close()


async def test_two_nodes_of_two_workers_admit_the_limit_within_one_percent(world: World) -> None:
    caller = key(rpm=600)
    admitted = {"a": 0, "b": 0}
    for _ in range(1200):
        for node in (world.a, world.b):
            admitted[node.name] += node.ask(caller, 2)
        await world.sync()
        await world.later(50)
    assert 594 <= sum(admitted.values()) <= 606, admitted
    assert min(admitted.values()) > 100


async def test_what_one_node_overdraws_the_other_waits_for(world: World) -> None:
    caller = key(rpm=60_000, tpm=60_000)
    grant = reserved(world.a.workers[0], caller, 10)
    assert isinstance(grant, Grant)
    ended(grant, 5_000)
    await world.sync()
    assert world.b.ask(caller) > 0  # it has not heard of the key
    await world.sync()
    assert 4_600 < world.b.owed_ms()[1] <= 5_100
    assert isinstance(fault := reserved(world.b.workers[1], caller, 10), Fault)
    assert fault.retry_after_s is not None
    assert 4 < fault.retry_after_s < 5.2
    await world.later(5_100)
    assert isinstance(reserved(world.b.workers[1], caller, 10), Grant)


async def test_what_was_reserved_and_not_used_is_given_back_everywhere(world: World) -> None:
    caller = key(tpm=60_000)
    grant = reserved(world.a.workers[0], caller, 30_000)
    assert isinstance(grant, Grant)
    await world.sync()
    ended(grant, 100)
    await world.sync()
    assert isinstance(reserved(world.b.workers[0], caller, 10), Grant)
    await world.sync()
    assert world.a.owed_ms()[1] < 500
    assert world.b.owed_ms()[1] < 500


async def test_without_redis_each_keeps_to_its_share_and_with_it_again_to_the_whole(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    caller = key(rpm=600)
    world.clock.now += NODE_EVERY_NS
    await world.sync()
    await world.sync()
    world.clock.now += NODE_EVERY_NS
    await world.sync()
    assert [node.cells.segment.limit_nodes for node in (world.a, world.b)] == [2, 2]
    assert world.a.ask(caller) == 2
    await world.sync()
    world.server.pause()
    for _ in range(3):
        for node in (world.a, world.b):
            node.sync.failed(TimeoutError())
        world.clock.now += AWAY_NS // 2
    for node in (world.a, world.b):
        node.sync.failed(TimeoutError())
    assert [node.cells.segment.limit_share for node in (world.a, world.b)] == [2, 2]
    alone = 0
    for _ in range(1200):
        alone += world.a.ask(caller)
        world.clock.now += 50 * MS
    assert 297 <= alone <= 303
    world.server.resume()
    await world.sync()
    assert [node.cells.segment.limit_share for node in (world.a, world.b)] == [1, 1]
    assert world.b.ask(caller) == 2
    await world.sync()
    await world.sync()
    assert max(node.owed_ms()[0] for node in (world.a, world.b)) < 1000  # what was used apart is not told
    words = [r.message.split(":")[0] for r in caplog.records if r.message.startswith("limits_")]
    assert (
        words
        == ["limits_shared nodes=1", "limits_shared nodes=2"]
        + ["limits_apart nodes=2"] * 2
        + ["limits_shared nodes=2"] * 2
    )


async def test_a_short_silence_loses_nothing(world: World) -> None:
    caller = key(rpm=600, burst=50)
    await world.sync()
    assert world.a.ask(caller, 10) == 20
    world.a.sync.failed(TimeoutError())
    await world.sync()
    assert world.b.ask(caller, 1) == 2
    await world.sync()
    assert 2_000 < world.b.owed_ms()[0] <= 2_200


async def test_an_emptied_redis_takes_the_nodes_word(world: World) -> None:
    caller = key(rpm=600, burst=50)
    await world.sync()
    assert world.a.ask(caller, 10) == 20
    await world.sync()
    world.server.command("FLUSHALL")
    assert world.a.ask(caller, 1) == 2
    await world.sync()
    assert 2_100 < world.a.owed_ms()[0] <= 2_200


async def test_a_clock_of_redis_that_is_put_back_locks_nobody_out(world: World) -> None:
    caller = key(rpm=60_000, tpm=60_000)
    ended_early = reserved(world.a.workers[0], caller, 10)
    assert isinstance(ended_early, Grant)
    ended(ended_early, 5_000)
    await world.sync()
    redis = world.a.redis
    (name,) = [name for name in await redis.keys("t:{limits}:*") if not name.endswith(b":nodes")]
    hour_us = 3_600_000_000  # what was written is an hour ahead of a clock that is an hour behind
    ahead = [int(word) + hour_us for word in (await redis.get(name)).split()]
    await redis.set(name, " ".join(map(str, ahead)), keepttl=True)
    assert world.b.ask(caller) > 0
    await world.sync()
    assert 0 <= world.b.owed_ms()[0] < 100
    assert 4_500 < world.b.owed_ms()[1] <= 5_100, "what is owed stays owed"
    assert world.b.ask(caller) > 0


async def test_a_new_controller_tells_nothing_twice(world: World) -> None:
    caller = key(rpm=600, burst=50)
    assert world.a.ask(caller, 10) == 20
    await world.sync()
    world.a.sync = world.a.controller()
    assert world.a.ask(caller, 1) == 2
    await world.sync()
    assert 2_000 < world.a.owed_ms()[0] <= 2_200


async def test_redis_is_left_alone_while_no_key_is_used(world: World) -> None:
    await world.sync()
    calls = world.server.calls("evalsha")
    for _ in range(50):
        await world.sync()
    assert world.server.calls("evalsha") == calls
    world.a.ask(key(rpm=600))
    await world.sync()
    await world.sync()
    await world.sync()
    assert world.server.calls("evalsha") == calls + 1


async def test_what_is_kept_expires(world: World) -> None:
    world.a.ask(key(rpm=600))
    await world.sync()
    (name,) = [n for n in await world.a.redis.keys("t:{limits}:*") if not n.endswith(b":nodes")]
    assert 50_000 < await world.a.redis.pttl(name) <= 61_000
