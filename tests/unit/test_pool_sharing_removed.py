"""A shared pool that is removed from the configuration, in the world of `sharing_world`: of some nodes, or of all."""

import pytest
from msgspec.structs import replace

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.agreement import Agreement
from penstock.workers.pools.lease import Lease, Seen, Word
from penstock.workers.pools.nodes import Timing
from penstock.workers.pools.words import Load, MemberPhase

from .sharing_world import TIMING, Node, World

SETTLE_S = TIMING.silent_s + TIMING.lease_s + 1
SOON_S = 1.0


def awake(seed: int, nodes: int = 3) -> World:
    """A world whose nodes know each other and have the server running."""
    world = World(seed, nodes)
    world.run(SETTLE_S)
    world.run(1.0, requests=3.0)
    assert world.receiver.up_at is not None
    return world


def owner(world: World) -> Node:
    (one,) = (node for node in world.nodes if node.agreement.proven(world.now))
    return one


@pytest.mark.parametrize("seed", range(4))
def test_removed_everywhere_it_is_ended_once_in_whatever_order_nodes_hear_of_it(seed: int) -> None:
    world = awake(seed)
    for node in world.random.sample(world.nodes, 3):
        node.leave()
        world.run(world.random.choice([0.0, 0.05, 1.0]))
    world.run(SOON_S)
    assert world.receiver.up_at is None
    assert (world.receiver.stops, len(world.ended)) == (1, 1)
    world.run(2 * SETTLE_S)
    assert (world.receiver.stops, len(world.ended)) == (1, 1)
    assert not any(node.seeing_off for node in world.nodes)


def test_it_is_not_ended_under_a_request_of_any_node() -> None:
    world = awake(1)
    last = world.nodes[2]
    last.running.append(world.now + 20.0)
    for node in world.nodes:
        node.leave()
    world.run(19.0)
    assert world.receiver.up_at is not None
    world.run(1.0 + SOON_S)
    assert world.receiver.up_at is None


def test_removed_from_one_it_is_the_others_at_once_and_nobody_ends_it() -> None:
    world = awake(2)
    one = owner(world)
    one.leave()
    world.run(3 * TIMING.beat_s)
    assert owner(world) is not one, "the lease was not waited for"
    others = [node for node in world.nodes if node is not one]
    for _ in range(12):
        others[0].waiting += 1
        world.run(0.4)
    assert (world.receiver.starts, world.receiver.stops, world.ended) == (1, 0, [])
    assert not one.seeing_off, "it is through with it"
    world.run(SOON_S)
    assert world.receiver.stops == 1, "idle, by those that stay"


def test_who_leaves_is_not_waited_for_when_it_has_nothing_in_flight() -> None:
    world = awake(3)
    one = owner(world)
    one.leave()
    one.running.append(world.now + 5.0)
    world.run(4.9)
    assert world.receiver.stops == 0
    world.run(SOON_S + TIMING.beat_s)
    assert (world.receiver.stops, world.ended) == (1, [])


@pytest.mark.parametrize("when", ["told", "not told", "it ends it"])
def test_a_node_that_is_killed_meanwhile_is_outlived(when: str) -> None:
    world = awake(4, nodes=2)
    killed = owner(world)
    (other,) = (node for node in world.nodes if node is not killed)
    other.leave()
    if when != "not told":
        killed.leave()
    if when == "it ends it":
        while killed.ending is None and other.ending is None:
            world.run(0.02)
        killed, other = (killed, other) if killed.ending is not None else (other, killed)
    if when == "not told":
        world.run(0.5)
    killed.configured = False
    killed.boot()
    killed.running = []
    world.run(SETTLE_S)
    assert world.receiver.up_at is None
    assert world.receiver.stops == 1


def test_one_that_is_killed_in_the_midst_of_a_stream_is_outlived() -> None:
    world = awake(4, nodes=2)
    first, second = world.nodes
    second.running.append(world.now + 60.0)
    for node in world.nodes:
        node.leave()
    world.run(3 * TIMING.silent_s)
    assert world.receiver.up_at is not None
    second.running = []
    second.boot()
    world.run(SETTLE_S)
    assert world.ended == [first.name]
    assert world.receiver.up_at is None


def leaving(word: Word | None = None) -> Agreement:
    """Of a node that leaves, owns the pool, drains it, and has heard these words of another one for long."""
    agreement = Agreement("m", "a.1", lambda: "e", Timing(), 0.0)
    lease = Lease(era="e", owner="a.1", fence=5, beat=1, lease_ms=6000, drain=2, members=(0,), whole=True)
    agreement.leave(0.0)
    agreement.tell(Load(), PoolPhase.DRAINING, [MemberPhase.DRAINING], 0.0)
    for at in range(40):
        agreement.told(float(at))
        said = {} if word is None else {"b": replace(word, beat=at)}
        agreement.heard("a", Seen(lease, "v1", swapped=True, words=said), float(at), float(at))
    return agreement


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_that_another_one_holds_back_is_no_leave_to_end_what_it_has(leaves: bool) -> None:
    agreement = leaving(Word("b.1", drained=(5, 2), leaves=leaves))
    assert not agreement.others(39.0).drained
    assert agreement.confirming(agreement.order("stop", 0, ()), 39.0) is None
    alone = leaving()
    assert alone.others(39.0).drained
    assert alone.confirming(alone.order("stop", 0, ()), 39.0) is not None


def test_who_leaves_has_left_only_when_it_has_said_that_nothing_is_in_flight() -> None:
    agreement = Agreement("m", "a.1", lambda: "e", Timing(), 0.0)
    agreement.tell(Load(), PoolPhase.READY, [MemberPhase.READY], 0.0)
    agreement.heard("a", Seen(), 0.0, 0.0)
    agreement.leave(1.0)
    word = agreement.told(1.0).word
    assert (word.leaves, word.left, word.busy) == (True, False, True), "workers may not know it yet"
    agreement.tell(Load(), PoolPhase.DRAINING, [MemberPhase.DRAINING], 1.2)
    assert agreement.told(1.2).word.left


def test_put_back_it_drains_nothing_until_it_is_told_what_there_is() -> None:
    agreement = leaving()
    assert agreement.told(39.0).word.left
    agreement.stay()
    told = agreement.told(39.0)
    assert told.lease is not None
    assert (told.lease.members, told.lease.whole) == ((), False)
    assert (told.word.left, told.word.leaves, told.word.busy) == (False, False, True)


def test_put_back_while_it_is_seen_off_it_goes_on() -> None:
    world = awake(5)
    for node in world.nodes:
        node.running.append(world.now + 1.0)
        node.leave()
    world.run(0.5)
    for node in world.nodes:
        node.put_back()
    for _ in range(20):
        world.nodes[0].waiting += 1
        world.run(0.4)
    assert (world.receiver.starts, world.receiver.stops, world.ended) == (1, 0, [])
    assert owner(world)


def test_put_back_on_one_it_is_that_ones() -> None:
    world = awake(6)
    for node in world.nodes:
        node.running.append(world.now + 2.0)
        node.leave()
    world.run(0.5)
    world.nodes[1].put_back()
    for _ in range(20):
        world.nodes[1].waiting += 1
        world.run(0.4)
    assert (world.receiver.starts, world.receiver.stops, world.ended) == (1, 0, [])
    assert owner(world) is world.nodes[1]


def test_with_the_store_away_nobody_ends_it_until_it_is_back() -> None:
    world = awake(7)
    world.store.up = False
    for node in world.nodes:
        node.leave()
    world.run(3 * SETTLE_S)
    assert world.receiver.up_at is not None
    world.store.up = True
    world.run(SETTLE_S)
    assert (world.receiver.stops, len(world.ended)) == (1, 1)


def test_removed_again_after_it_was_put_back_it_is_ended_again() -> None:
    world = awake(8)
    for expected in (1, 2):
        for node in sorted(world.nodes, key=lambda node: node.agreement.proven(world.now)):
            node.leave()
            world.run(0.5)
        world.run(SETTLE_S)
        assert (world.receiver.stops, len(world.ended)) == (expected, expected)
        for node in world.nodes:
            node.put_back()
        world.run(SETTLE_S)
        world.run(1.0, requests=3.0)
        assert world.receiver.up_at is not None


@pytest.mark.parametrize("seed", range(4))
def test_whatever_goes_wrong_it_is_ended_and_never_under_who_has_it(seed: int) -> None:
    anything_goes_wrong(seed)


@pytest.mark.slow
def test_the_same_in_many_worlds() -> None:
    for seed in range(4, 120):
        anything_goes_wrong(seed)


def anything_goes_wrong(seed: int) -> None:
    world = World(seed, mischief=0.02, forgets=seed % 2 == 0)
    for _ in range(8):
        node = world.random.choice(world.nodes)
        if world.random.random() < 0.7:
            node.leave() if node.configured else node.put_back()
        world.run(5.0, requests=world.random.choice([0.0, 0.2, 3.0]), trouble=True)
    for node in world.nodes:
        if not node.configured:
            node.put_back()
    world.store.up = True
    world.run(SETTLE_S, requests=3.0)
    world.spared = world.random.choice(world.nodes)
    for node in world.random.sample(world.nodes, 3):
        node.leave()
        world.run(world.random.choice([0.0, 0.05, 1.0]), trouble=True)
    world.run(5.0, trouble=True)
    world.mischief = 0.0
    world.store.up = True
    world.run(25.0)
    assert world.receiver.up_at is None, "servers that nobody is configured with were left"
    assert not any(node.seeing_off for node in world.nodes)
