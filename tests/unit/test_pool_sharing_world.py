"""Nodes that share a pool, in a world that pauses, cuts off, kills and forgets; see `sharing_world`."""

import pytest

from .sharing_world import IDLE_S, TIMING, World

SETTLE_S = TIMING.silent_s + TIMING.lease_s + 1


def test_a_pool_that_nobody_uses_any_more_is_stopped_once_by_one_owner() -> None:
    world = World(1)
    world.run(SETTLE_S)
    world.run(2.0, requests=2.0)
    assert world.served
    world.run(SETTLE_S)
    assert world.receiver.up_at is None
    assert (world.receiver.starts, world.receiver.stops) == (1, 1)
    assert sum(n.agreement.proven(world.now) for n in world.nodes) == 1


def test_requests_anywhere_keep_it_for_all() -> None:
    """Only one node has requests, and another one owns the pool."""
    world = World(2)
    world.run(SETTLE_S)
    busy = next(node for node in world.nodes if not node.agreement.proven(world.now))
    for _ in range(40):
        busy.waiting += 1
        world.run(IDLE_S * 0.8)
    assert world.served == 40
    assert (world.receiver.starts, world.receiver.stops) == (1, 0)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_wrong_one_owns_it_and_nothing_is_stopped_under_a_request(seed: int) -> None:
    anything_goes_wrong(seed)


@pytest.mark.slow
def test_the_same_in_many_worlds() -> None:
    for seed in range(6, 80):
        anything_goes_wrong(seed)


def anything_goes_wrong(seed: int) -> None:
    world = World(seed, mischief=0.02, forgets=seed % 2 == 0)
    for _ in range(6):
        world.run(8.0, requests=world.random.choice([0.0, 0.2, 3.0]), trouble=True)
        world.run(1.0)
    world.mischief = 0.0
    world.store.up = True
    world.run(20.0)
    assert not any(node.waiting for node in world.nodes), "a waiter was forgotten"
    assert sum(n.agreement.proven(world.now) for n in world.nodes) == 1
    assert world.receiver.up_at is None, "a server that nobody uses was left"
