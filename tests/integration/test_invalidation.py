"""Two nodes on one real Redis: a flush on one is a flush on the other, whatever happens to messages and Redis."""

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.epoch import EPOCH_CELLS, Epochs, name_of_model, name_of_tenant
from penstock.cache.layout import CELL_BYTES, HEADER_BYTES
from penstock.cache.redis_client import RedisSettings
from penstock.workers.invalidation import Invalidation

from ..support.redis import (
    AclUser,
    RedisServer,
    redis_cluster,
    redis_sentinel,
    redis_server,
)
from ..support.scripted import Peer, scripted

KEY = Key(bytes(range(32)))
NAME = "penstock:epochs"
MODEL = name_of_model("m")
TENANT = name_of_tenant("t")
SLOW_S = 60.0
"""A poll that does not come within the test: whatever is noticed came by a message."""
QUICK_S = 0.2


class Remembering(Epochs):
    """Epochs that may have no nonce a second time: it would bring back what was flushed."""

    def __init__(self, arena: Arena) -> None:
        at = HEADER_BYTES // CELL_BYTES
        super().__init__(arena.cells[at : at + EPOCH_CELLS])
        self.returned: list[str] = []
        self._had = set(self.names_set().items())

    def set(self, name: str, nonce: int) -> None:
        if self.get(name) != nonce and (name, nonce) in self._had:
            self.returned.append(name)
        self._had.add((name, nonce))
        super().set(name, nonce)


class Node:
    """One node: epochs of its own, and the controller's part in them."""

    def __init__(self, settings: RedisSettings | None, poll_s: float, arena: Arena | None = None) -> None:
        self.arena = arena or Arena.create(None, ArenaGeometry.of(0, 1, 1), 0)
        self.epochs = Remembering(self.arena)
        self.invalidation = Invalidation(
            self.epochs, settings, "penstock", clock=time.monotonic, random=os.urandom, poll_s=poll_s
        )

    def stamp(self) -> int:
        return self.epochs.stamp(self.epochs.scope("m", "t"), KEY)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Node"]:
        task = asyncio.create_task(self.invalidation.run())
        try:
            yield self
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert self.epochs.returned == []


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def two(settings: RedisSettings, poll_s: float) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that are in step."""
    async with Node(settings, poll_s).running() as one, Node(settings, poll_s).running() as other:
        await until(lambda: one.epochs.synced and other.epochs.synced, "both in step")
        await until(lambda: one.stamp() == other.stamp() != 0, "the same epochs")
        yield one, other


async def flush_is_seen(one: Node, other: Node, name: str = "all") -> None:
    before = other.epochs.get(name)
    told = await one.invalidation.flush(name)
    assert not (told and one.invalidation.untold)
    await until(lambda: other.epochs.get(name) == one.epochs.get(name) != before, f"{name} on the other node")


def settings_of(server: RedisServer) -> RedisSettings:
    return RedisSettings(server.url)


def subscribers(server: RedisServer) -> int:
    return int(server.command("PUBSUB", "NUMSUB", NAME)[1])


async def test_a_flush_of_each_kind_is_seen_by_the_other_node_by_message_alone() -> None:
    with redis_server() as server:
        async with two(settings_of(server), SLOW_S) as (one, other):
            await until(lambda: subscribers(server) == 2, "both listen")
            for name in ("all", "m:255", "t:1023", "k:4095", "k:4095"):
                await flush_is_seen(one, other, name)
            await flush_is_seen(other, one, "m:0")
            assert one.stamp() == other.stamp()


async def test_a_node_that_comes_later_reads_what_was_flushed_before() -> None:
    with redis_server() as server:
        async with two(settings_of(server), SLOW_S) as (one, other):
            await flush_is_seen(one, other, "m:7")
            async with Node(settings_of(server), SLOW_S).running() as third:
                assert not third.epochs.synced
                await until(lambda: third.epochs.synced, "the third in step")
                assert third.epochs.names_set() == one.epochs.names_set()


async def test_without_a_message_the_poll_is_enough() -> None:
    """The user may not subscribe, so only the poll is left; the operator is told once."""
    rules = AclUser().rules.replace("+subscribe", "").replace("+publish", "")
    with redis_server(user=AclUser(rules=rules)) as server:
        settings = RedisSettings(server.url, username="penstock", password=AclUser().password)
        async with two(settings, QUICK_S) as (one, other):
            await flush_is_seen(one, other)
            assert subscribers(server) == 0


async def test_a_message_lost_with_its_connection_is_made_good_by_the_poll(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as server:
        async with two(settings_of(server), 2.0) as (one, other):
            await until(lambda: subscribers(server) == 2, "both listen")
            server.command("ACL", "SETUSER", "default", "-subscribe")  # so they stay deaf
            assert server.command("CLIENT", "KILL", "TYPE", "pubsub") == 2
            await flush_is_seen(one, other)
            assert subscribers(server) == 0
            server.command("ACL", "SETUSER", "default", "+subscribe")
            await until(lambda: subscribers(server) == 2, "both listen again")
        assert [r.levelname for r in caplog.records if "epochs_polled" in r.message] == ["WARNING"] * 2


async def test_a_flush_while_redis_is_away_holds_here_at_once_and_there_when_it_is_back() -> None:
    with redis_server() as server:
        async with two(settings_of(server), QUICK_S) as (one, other):
            server.stop()
            before = one.stamp()
            assert not await one.invalidation.flush(TENANT)
            assert one.invalidation.untold == 1
            flushed = one.epochs.get(TENANT)
            await until(lambda: not one.epochs.synced and not other.epochs.synced, "neither trusts Redis")
            server.start()
            await until(lambda: other.epochs.get(TENANT) == flushed, "the other node has it")
            await until(lambda: one.epochs.synced and other.epochs.synced, "both in step again")
            assert one.invalidation.untold == 0
            assert one.stamp() == other.stamp() != before


async def test_an_empty_redis_in_place_of_the_old_one_gets_what_the_nodes_know() -> None:
    with redis_server() as server:
        async with two(settings_of(server), QUICK_S) as (one, other):
            for name in ("m:1", "t:2", "k:3"):
                await flush_is_seen(one, other, name)
            known = one.epochs.names_set()
            server.restart()
            await until(
                lambda: len(server.command("HGETALL", NAME)) == len(known) + 1, "Redis has them again"
            )
            async with Node(settings_of(server), QUICK_S).running() as third:
                await until(lambda: third.epochs.synced, "a new node in step")
                assert third.epochs.names_set() == known
            assert one.epochs.names_set() == other.epochs.names_set() == known


async def test_a_redis_that_lost_a_flush_does_not_bring_back_what_was_flushed() -> None:
    """As after a failover to a replica that lagged."""
    with redis_server() as server:
        async with two(settings_of(server), QUICK_S) as (one, other):
            await flush_is_seen(one, other, MODEL)
            stale, dead = server.command("HGETALL", NAME), one.stamp()
            await flush_is_seen(one, other, MODEL)
            for name, value in stale.items():
                server.command("HSET", NAME, name, value)
            await until(lambda: server.command("HGET", NAME, MODEL) != stale[MODEL.encode()], "another nonce")
            await until(lambda: one.stamp() == other.stamp() != dead, "the same epochs")
            told = server.command("HGETALL", NAME)
            assert {
                name.decode(): int(told[name]) for name in told if name != b"version"
            } == one.epochs.names_set()


@pytest.mark.parametrize("seed", [1, 2])
async def test_nodes_agree_in_the_end_whatever_is_lost_meanwhile(seed: int) -> None:
    """Flushes on three nodes at once; Redis loses writes, all of them, connections, and stands still."""
    chance = random.Random(seed)
    with redis_server() as server:
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(Node(settings_of(server), 0.1).running()) for _ in range(3)
            ]
            flushes, states = [], [server.command("HGETALL", NAME)]
            for _ in range(60):
                event = chance.random()
                if event < 0.6:
                    flush = chance.choice(nodes).invalidation.flush(
                        chance.choice(["all", "m:1", "t:1", "k:5"])
                    )
                    flushes.append(asyncio.create_task(flush))
                elif event < 0.7:
                    states.append(server.command("HGETALL", NAME))
                elif event < 0.8:
                    with server.client() as client:
                        undo = client.pipeline().delete(NAME)
                        earlier = chance.choice(states)
                        (undo.hset(NAME, mapping=earlier) if earlier else undo).execute()
                elif event < 0.9:
                    server.command("CLIENT", "KILL", "TYPE", chance.choice(["normal", "pubsub"]))
                elif event < 0.95:
                    server.restart()
                else:
                    server.pause()
                    await asyncio.sleep(0.05)
                    server.resume()
                await asyncio.sleep(0.04 * chance.random())
            await asyncio.wait(flushes)

            def agreed() -> bool:
                said = server.command("HGETALL", NAME).items()
                told = {name.decode(): int(text) for name, text in said if name != b"version"}
                return all(node.epochs.names_set() == told and not node.invalidation.untold for node in nodes)

            await until(agreed, "the same epochs everywhere")


async def test_a_controller_that_dies_before_redis_is_back_leaves_its_flush_to_its_successor() -> None:
    with redis_server() as server:
        async with two(settings_of(server), QUICK_S) as (one, other):
            await flush_is_seen(one, other, "m:1")
            old = one.epochs.get("m:1")
            lost = Node(settings_of(server), QUICK_S, one.arena)
            await lost.invalidation.flush("m:1")  # it never ran, so it never told
            assert other.epochs.get("m:1") == old
            async with Node(settings_of(server), QUICK_S, one.arena).running():
                await until(lambda: other.epochs.get("m:1") != old, "the other node has another nonce")
                await until(lambda: other.epochs.get("m:1") == one.epochs.get("m:1"), "the same one")
                assert one.epochs.get("m:1") != old


async def test_what_is_no_epoch_is_passed_over() -> None:
    with redis_server() as server:
        rubbish = {
            "m:256": "1", "m:01": "1", "k:9999": "1", "x:1": "1", "\xff": "1", "m:1": "-1", "m:2": "0",
            "m:3": str(1 << 64), "m:4": "9" * 100_000, "t:1": "one", "m:5": "5",
        }  # fmt: skip
        for name, value in rubbish.items():
            server.command("HSET", NAME, name, value)
        async with Node(settings_of(server), QUICK_S).running() as node:
            await until(lambda: node.epochs.synced, "in step")
            assert node.epochs.names_set().keys() == {"all", "m:5"}
            server.command("DEL", NAME)
            server.command("SET", NAME, "of another type")
            await until(lambda: not node.epochs.synced, "not in step with that")
            server.command("DEL", NAME)
            await until(lambda: node.epochs.synced, "in step again")


async def test_the_log_has_one_line_per_change_of_state(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock.workers")
    with redis_server(maxmemory_policy="allkeys-lru") as server:
        async with Node(settings_of(server), QUICK_S).running() as node:
            await until(lambda: node.epochs.synced, "in step")
            server.stop()
            await until(lambda: not node.epochs.synced, "lost")
            tried = len(caplog.records)
            await until(
                lambda: len(caplog.records) > tried + 5, "some more attempts, which are told at DEBUG"
            )
            server.start()
            await until(lambda: node.epochs.synced, "in step again")
    said = [record.message for record in caplog.records if record.levelno > logging.DEBUG]
    assert [line.split()[0] for line in said] == ["epochs_synced", "epochs_lost:", "epochs_synced"]


async def test_without_redis_a_flush_is_local_and_redis_is_not_trusted() -> None:
    async with Node(None, QUICK_S).running() as node:
        before = node.stamp()
        assert await node.invalidation.flush("all") is False
        assert node.stamp() != before
        assert node.invalidation.untold == 0
        assert not node.epochs.synced


async def test_under_sentinel_flushes_go_on_after_a_failover() -> None:
    with redis_sentinel() as found:
        async with two(RedisSettings(found.url, "sentinel", found.nodes), QUICK_S) as (one, other):
            await flush_is_seen(one, other)
            found.master().kill()
            assert await one.invalidation.flush("m:1") in (True, False)
            await until(
                lambda: other.epochs.get("m:1") == one.epochs.get("m:1") != 0, "seen by the new master"
            )
            await flush_is_seen(other, one)


async def test_in_a_cluster_flushes_are_seen_by_message_and_go_on_after_a_failover() -> None:
    with redis_cluster(replicas=3) as found:
        settings = RedisSettings(found.url, "cluster", found.nodes)
        async with two(settings, SLOW_S) as (one, other):
            await until(lambda: sum(map(subscribers, found.servers)) == 2, "both listen")
            await flush_is_seen(one, other)
        async with two(settings, QUICK_S) as (one, other):
            found.owner(NAME).kill()
            await one.invalidation.flush("m:1")
            await until(lambda: other.epochs.get("m:1") == one.epochs.get("m:1") != 0, "seen by the replica")


@pytest.mark.parametrize(("policy", "said"), [("noeviction", 1), ("allkeys-lru", 0)])
async def test_a_redis_that_refuses_entries_when_it_is_full_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, policy: str, said: int
) -> None:
    with redis_server(maxmemory_policy=policy) as server:
        async with two(settings_of(server), QUICK_S) as (one, other):
            await until(lambda: one.epochs.synced and other.epochs.synced, "both in step")
            if said:
                await until(lambda: caplog.text.count("l2_noeviction") == 2, "each said so")
            await flush_is_seen(one, other)
            await flush_is_seen(other, one)
        assert caplog.text.count("l2_noeviction") == 2 * said


@pytest.mark.parametrize(
    "reply",
    [
        b":5\r\n",
        b"*0\r\n",
        b"*2\r\n:1\r\n:2\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"$-1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_whatever_answers_in_the_place_of_redis_the_node_goes_on(reply: bytes) -> None:
    asked = 0

    async def answer(peer: Peer) -> None:
        nonlocal asked
        while heard := await peer.reader.read(65536):
            asked += 1
            peer.writer.write(b"+OK\r\n" if b"CLIENT" in heard else reply)

    async with scripted(answer) as odd:
        settings = RedisSettings(odd.url.replace("http", "redis"))
        async with Node(settings, QUICK_S).running() as node:
            await node.invalidation.flush(MODEL)
            await until(lambda: asked > 20, "the node asks again and again")
            assert node.epochs.get(MODEL)
