"""Nodes that share a pool through a real Redis: one owner, stops that all agree to, and what outages do to both."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.cache.redis_client import RedisSettings
from penstock.workers.pools.lease import LeaseStore
from penstock.workers.pools.lease_redis import RedisLeases
from penstock.workers.pools.words import MemberPhase

from ..support.redis import AclUser, RedisServer, redis_cluster, redis_server
from ..support.sharing import POOL, Nodes, SharingNode, sharing

OFF, READY, DRAINING, STOPPING = (
    MemberPhase.OFF,
    MemberPhase.READY,
    MemberPhase.DRAINING,
    MemberPhase.STOPPING,
)
USER = AclUser(
    rules="~penstock:* &penstock:* -@all +evalsha +eval +hget +hset +hdel +hgetall +time +pexpire"
    " +publish +subscribe +unsubscribe +ping"
)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(user=USER) as running:
        yield running


@pytest.fixture
def store(server: RedisServer) -> Callable[[], LeaseStore]:
    settings = RedisSettings(server.url, username=USER.name, password=USER.password)
    return lambda: RedisLeases(settings, "penstock")


async def agreed(nodes: Nodes, owner: SharingNode, other: SharingNode) -> None:
    """Have the owner drain, and the other one hold its requests back."""
    await nodes.idle(owner)
    owner.becomes(PoolPhase.DRAINING)
    await nodes.until(lambda: other.others.draining, "the other sees the drain")
    other.becomes(PoolPhase.DRAINING, READY)  # as its machine has it: the pool drains, the member does not
    await nodes.until(lambda: owner.others.drained, "the other is through")


async def test_one_of_two_owns_it_and_the_other_takes_over_at_once_when_it_leaves(
    store: Callable[[], LeaseStore],
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        assert not other.others.may_stop
        assert (owner.metric("penstock_pool_owner"), other.metric("penstock_pool_owner")) == (1, 0)
        fence = owner.metric("penstock_pool_fence")
        await owner.pause()
        owner.has(running=0)
        await owner.shared.close()
        nodes.all.remove(owner)
        assert await nodes.owner() is other
        assert other.metric("penstock_pool_fence") > fence
        await nodes.idle(other)  # who left in good order is not waited for


async def test_a_stop_needs_every_node_to_hold_back_and_is_then_known_to_all(
    store: Callable[[], LeaseStore],
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await nodes.idle(owner)
        early = owner.order("stop")
        assert not await owner.confirm(early), "nothing drains yet"
        other.has(running=1)
        await nodes.until(lambda: owner.others.busy, "the other has work")
        owner.becomes(PoolPhase.DRAINING)
        await nodes.until(lambda: other.others.draining, "the other sees the drain")
        other.becomes(PoolPhase.DRAINING)
        for _ in range(30):
            await nodes.until(lambda: True)
            await asyncio.sleep(0.01)
            assert not owner.others.drained, "a request is in flight"
        assert not await owner.confirm(owner.order("stop"))
        other.has(running=0)
        await nodes.until(lambda: owner.others.drained, "it has ended")
        order = await nodes.confirmed(owner)
        assert order == owner.order("stop")
        assert await owner.confirm(order), "a repetition is the same stop"
        owner.becomes(PoolPhase.STOPPING)
        await nodes.until(lambda: other.others.stops == (1,), "the other knows")
        assert other.others.draining, "it is not over"
        assert owner.others.stops == (0,), "its own is no news"
        owner.becomes(PoolPhase.OFF)
        await nodes.until(lambda: not other.others.draining, "it is over")


async def test_demand_on_another_node_is_seen_and_the_end_of_a_drain_too(
    store: Callable[[], LeaseStore],
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await agreed(nodes, owner, other)
        other.has(waiting=1)
        await nodes.until(lambda: owner.others.busy, "the owner sees that somebody waits")
        owner.becomes(PoolPhase.READY)
        await nodes.until(lambda: not other.others.draining, "the drain is over")
        other.becomes(PoolPhase.READY)
        assert not await owner.confirm(owner.order("stop")), "what was agreed holds no longer"


async def test_a_wake_has_one_key_from_all_nodes_and_another_after_each_stop(
    store: Callable[[], LeaseStore],
) -> None:
    async with sharing(store, "a", "b") as nodes:
        for node in nodes.all:
            node.becomes(PoolPhase.OFF)
        owner = await nodes.owner()
        other = nodes.other(owner)
        first = owner.order("start")
        assert first.key == other.order("start").key
        for node in nodes.all:
            node.becomes(PoolPhase.READY)
        await agreed(nodes, owner, other)
        await nodes.confirmed(owner)
        owner.becomes(PoolPhase.OFF)
        await nodes.until(lambda: other.others.stops == (1,), "the other knows")
        await nodes.until(lambda: not other.others.draining, "it is over")
        other.becomes(PoolPhase.OFF)
        second = owner.order("start")
        assert second.key == other.order("start").key != first.key
        assert second.fence >= first.fence


async def test_a_start_after_one_that_ended_has_a_key_of_its_own(store: Callable[[], LeaseStore]) -> None:
    """Its server died, or never answered: a receiver must not take the next start for the last one."""
    async with sharing(store, "a", "b") as nodes:
        node = nodes.all[0]
        node.becomes(PoolPhase.STARTING)
        await nodes.owner()
        first = node.order("start")
        node.becomes(PoolPhase.OFF)
        node.tick()
        assert len({first.key, node.order("start").key, node.order("start").key}) == 3


async def test_an_owner_that_slept_past_its_lease_stops_nothing(store: Callable[[], LeaseStore]) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await agreed(nodes, owner, other)
        order = owner.order("stop")
        await owner.pause()
        assert await nodes.owner([other]) is other
        assert not owner.others.may_stop
        assert not await owner.confirm(order)
        await nodes.until(lambda: not other.others.draining, "its drain ended with it")
        assert other.order("stop").fence > order.fence
        owner.speak()
        await nodes.until(lambda: owner.others.draining is False and not owner.others.may_stop)


async def test_a_silent_node_counts_as_busy_for_a_while_and_is_then_none(
    store: Callable[[], LeaseStore],
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await nodes.idle(owner)
        await other.pause()
        await nodes.until(lambda: owner.others.busy, "it is silent")
        await nodes.idle(owner)
        owner.becomes(PoolPhase.DRAINING)
        await nodes.until(lambda: owner.others.drained, "it is none")
        await nodes.confirmed(owner)


async def test_with_redis_away_nobody_may_stop_and_anybody_may_start(
    server: RedisServer, store: Callable[[], LeaseStore]
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await agreed(nodes, owner, other)
        fence = owner.metric("penstock_pool_fence")
        order = owner.order("stop")
        server.kill()
        assert not await owner.confirm(order)
        await nodes.until(lambda: not owner.others.may_stop, "it can prove nothing any more")
        await nodes.until(lambda: not other.others.draining, "nobody is held for ever")
        assert owner.metric("penstock_pools_lease_store_up") == 0
        keys = {node.order("start").key for node in nodes.all for _ in range(2)}
        assert len(keys) == 4, "what nobody agreed on is nobody else's key"
        server.start()
        for node in nodes.all:
            node.becomes(PoolPhase.READY)
        again = await nodes.owner()
        assert again.metric("penstock_pool_fence") > fence, "the empty one that replaced it"
        assert again.metric("penstock_pools_lease_store_up") == 1


async def test_redis_that_hangs_proves_nothing(server: RedisServer, store: Callable[[], LeaseStore]) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        await agreed(nodes, owner, nodes.other(owner))
        server.pause()
        assert not await owner.confirm(owner.order("stop"))
        await nodes.until(lambda: not owner.others.may_stop)
        server.resume()
        await nodes.owner()


async def test_a_flush_ends_ownership_until_a_lease_has_been_waited_for(
    server: RedisServer, store: Callable[[], LeaseStore]
) -> None:
    async with sharing(store, "a", "b") as nodes:
        owner = await nodes.owner()
        await agreed(nodes, owner, nodes.other(owner))
        fence = owner.metric("penstock_pool_fence")
        order = owner.order("stop")
        server.command("FLUSHALL")
        assert not await owner.confirm(order), "the lease is not there"
        # on a machine that is busy the next one may own it before anybody looks
        await nodes.until(
            lambda: all(
                not node.others.may_stop or node.metric("penstock_pool_fence") > fence for node in nodes.all
            )
        )
        again = await nodes.owner()
        assert again.metric("penstock_pool_fence") > fence


async def test_what_somebody_else_wrote_there_is_written_over(
    server: RedisServer, store: Callable[[], LeaseStore]
) -> None:
    key = f"penstock:{{pools}}:{POOL}"
    server.command("HSET", key, "lease", b"\xff{", "n:x", "[]", "n:y", "9" * 100_000)
    async with sharing(store, "a") as nodes:
        await nodes.owner()


async def test_members_drain_one_by_one(store: Callable[[], LeaseStore]) -> None:
    """Of two members one is to end: others hold back what is for that one, and go on with the other."""
    async with sharing(store, "a", "b") as nodes:
        for node in nodes.all:
            node.becomes(PoolPhase.READY, READY, READY)
        owner = await nodes.owner()
        other = nodes.other(owner)
        await nodes.idle(owner)
        owner.becomes(PoolPhase.READY, READY, DRAINING)
        await nodes.until(lambda: other.others.leaving == {1}, "the other sees which one")
        assert not other.others.draining
        other.load = other.load.__class__(running=2, inflight=(1, 1))
        other.becomes(PoolPhase.READY, READY, DRAINING)
        await nodes.until(lambda: owner.others.load == 2, "its load is known")
        assert not owner.others.drained
        other.load = other.load.__class__(running=1, inflight=(1, 0))
        await nodes.until(lambda: owner.others.drained, "nothing is in flight there")
        await nodes.confirmed(owner, 1)
        assert not await owner.confirm(owner.order("stop", 0)), "that one serves"


@pytest.mark.slow
async def test_a_cluster_keeps_them_too() -> None:
    with redis_cluster(masters=3, replicas=0) as cluster:
        settings = RedisSettings(cluster.url, topology="cluster", nodes=cluster.nodes)
        async with sharing(lambda: RedisLeases(settings, "penstock"), "a", "b") as nodes:
            owner = await nodes.owner()
            await agreed(nodes, owner, nodes.other(owner))
            await nodes.confirmed(owner)
