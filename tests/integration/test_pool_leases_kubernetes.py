"""Nodes that share a pool through Leases of a strict API server: one owner, stops that all agree to, outages."""

import time
from collections.abc import Callable, Iterator

import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.lease import Lease, LeaseStore, Told, Word
from penstock.workers.pools.lease_kubernetes import KubernetesLeases
from penstock.workers.pools.nodes import Timing
from penstock.workers.pools.providers.kube_access import KubeAccess
from penstock.workers.pools.providers.kube_api import KubeApi

from ..support.kube_api import KubeApiDouble
from ..support.kube_rules import granted, rules_of
from ..support.sharing import POOL, sharing

RULES = rules_of("penstock-leases")
TIMING = Timing(beat_s=0.1, lease_s=1.2, silent_s=1.5)


@pytest.fixture
def server() -> Iterator[KubeApiDouble]:
    with KubeApiDouble(rules=RULES) as running:
        yield running


def leases(server: KubeApiDouble) -> KubernetesLeases:
    api = KubeApi(KubeAccess(server.url), clock=time.monotonic, patience_s=0.2, retry_s=0.05)
    return KubernetesLeases(api, "penstock", time.time)


@pytest.fixture
def store(server: KubeApiDouble) -> Callable[[], LeaseStore]:
    return lambda: leases(server)


async def test_nodes_agree_on_an_owner_and_on_a_stop(
    server: KubeApiDouble, store: Callable[[], LeaseStore]
) -> None:
    async with sharing(store, "a", "b", timing=TIMING) as nodes:
        owner = await nodes.owner()
        other = nodes.other(owner)
        await nodes.idle(owner)
        other.has(running=1)
        owner.becomes(PoolPhase.DRAINING)
        await nodes.until(lambda: other.others.draining, "the other sees the drain")
        other.becomes(PoolPhase.DRAINING)
        await nodes.until(lambda: owner.others.busy, "the other has work")
        assert not await owner.confirm(owner.order("stop"))
        other.has(running=0)
        await nodes.until(lambda: owner.others.drained, "it has ended")
        order = await nodes.confirmed(owner)
        await owner.pause()
        assert await nodes.owner([other]) is other, "its lease has run out"
        assert other.others.stops == (1,)
        assert not await owner.confirm(order)
        assert other.order("stop").fence > order.fence


async def test_with_the_api_away_nobody_may_stop_and_a_lease_that_was_deleted_is_waited_for(
    server: KubeApiDouble, store: Callable[[], LeaseStore]
) -> None:
    async with sharing(store, "a", "b", timing=TIMING) as nodes:
        owner = await nodes.owner()
        await nodes.idle(owner)
        fence = owner.metric("penstock_pool_fence")
        server.stop()
        await nodes.until(lambda: not owner.others.may_stop, "it can prove nothing any more")
        server.start()
        for found in server.store.list("leases", "penstock"):
            server.store.remove("leases", "penstock", found["metadata"]["name"])
        again = await nodes.owner()
        assert again.metric("penstock_pool_fence") > fence


async def test_only_the_version_that_was_read_is_replaced(server: KubeApiDouble) -> None:
    first, second = leases(server), leases(server)
    lease = Lease(era="e", owner="a.1", fence=7, beat=1, lease_ms=1500)
    made = (await first.exchange("a", {POOL: Told(Word("a.1", 1), lease)}))[POOL]
    assert made.swapped
    assert made.lease == lease
    assert not (await second.exchange("b", {POOL: Told(Word("b.1", 1), lease)}))[POOL].swapped
    late = Told(Word("b.1", 2), Lease(owner="b.1", fence=8, beat=2), made.version, takes=True)
    seen = (await second.exchange("b", {POOL: late}))[POOL]
    assert seen.swapped
    assert set(seen.words) == {"a", "b"}
    stale = Told(Word("a.1", 2), Lease(owner="a.1", fence=7, beat=2), made.version)
    refused = (await first.exchange("a", {POOL: stale}))[POOL]
    assert not refused.swapped
    assert refused.lease is not None
    assert (refused.lease.owner, refused.lease.fence) == ("b.1", 8)
    spec = next(
        one["spec"]
        for one in server.store.list("leases", "penstock")
        if one["spec"]["holderIdentity"] == "b.1"
    )
    assert spec["leaseTransitions"] == 1
    await first.close()
    await second.close()


async def test_the_role_has_what_it_takes_and_no_more(server: KubeApiDouble) -> None:
    """Another controller of the same node finds its object; what a node that is long gone left is deleted."""
    first = leases(server)
    await first.exchange("a", {POOL: Told(Word("a.1", 1), Lease(owner="a.1", beat=1))})
    again = leases(server)
    seen = (await again.exchange("a", {POOL: Told(Word("a.2", 1))}))[POOL]
    assert seen.words["a"].life == "a.2"
    other = leases(server)
    lease = Lease(owner="b.1", beat=2)
    await other.exchange("b", {POOL: Told(Word("b.1", 1), lease, seen.version, drop=["a"])})
    assert set((await other.exchange("b", {POOL: Told(Word("b.1", 2))}))[POOL].words) == {"b"}
    used = {(one.group, one.resource, one.verb) for one in server.requests}
    assert used == granted(RULES)
    for one in (first, again, other):
        await one.close()
