"""What a node makes of what others did with a shared pool, and whom it believes to be there."""

from typing import Any

import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.workers.pools.agreement import Agreement
from penstock.workers.pools.follow import NOT_OURS, STOPPED, Follower
from penstock.workers.pools.lease import Lease, Seen, Word, lease_of, pack, word_of
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.nodes import Nodes, Timing
from penstock.workers.pools.ownership import Alone
from penstock.workers.pools.words import (
    Died,
    Load,
    MemberPhase,
    Others,
    Room,
    Slept,
    Start,
    Started,
    Tick,
    WakeAsked,
)

OFF, READY, DRAINING, ASLEEP = (
    MemberPhase.OFF,
    MemberPhase.READY,
    MemberPhase.DRAINING,
    MemberPhase.ASLEEP,
)
TIMING = Timing()


def foreign(**what: Any) -> Others:
    """What a node that does not own the pool is told."""
    return Others(**{"may_stop": False, "drained": False, **what})


def followed(*before: Others, members: list[MemberPhase]) -> Follower:
    follower = Follower()
    for others in before:
        follower.events(others, members)
    return follower


# ---- following


def test_a_stop_elsewhere_is_believed_when_its_drain_is_over() -> None:
    follower = followed(foreign(stops=(0,)), members=[READY])
    assert follower.events(foreign(stops=(1,), draining=True), [DRAINING]) == []
    assert follower.events(foreign(stops=(1,)), [DRAINING]) == [Died(0, STOPPED, True)]
    assert follower.events(foreign(stops=(1,)), [READY]) == [], "once"


def test_a_stop_of_one_member_is_believed_when_it_is_no_longer_leaving() -> None:
    follower = followed(foreign(stops=(0, 0)), members=[READY, READY])
    assert follower.events(foreign(stops=(0, 1), leaving=frozenset({1})), [READY, READY]) == []
    assert follower.events(foreign(stops=(0, 1)), [READY, READY]) == [Died(1, STOPPED, True)]


def test_what_was_stopped_before_this_node_came_is_no_news() -> None:
    assert Follower().events(foreign(stops=(3,)), [READY]) == []


def test_a_member_put_to_sleep_elsewhere_sleeps_here() -> None:
    follower = followed(foreign(stops=(0,)), members=[READY])
    asleep = foreign(stops=(1,), asleep=frozenset({0}))
    assert follower.events(asleep, [READY]) == [Slept(0)]
    assert Follower().events(asleep, [OFF]) == [Slept(0)], "a node that comes later"
    assert follower.found([0], foreign(running=frozenset({0})), [ASLEEP]) == [
        Died(0, "woken by another node", True),
        Started(0),
    ]


def test_a_stop_that_was_this_nodes_is_given_up_with_the_ownership() -> None:
    follower = Follower()
    assert follower.events(foreign(), [MemberPhase.STOPPING]) == [Died(0, NOT_OURS, True)]
    assert follower.events(Others(), [MemberPhase.STOPPING]) == []


def test_what_others_have_running_is_looked_for_and_taken_over() -> None:
    follower = followed(foreign(), members=[OFF])
    assert not follower.look
    others = foreign(running=frozenset({0}))
    follower.events(others, [OFF])
    assert follower.look
    assert follower.found([0], others, [OFF]) == [Started(0)]
    follower.events(others, [READY])
    assert not follower.look


def test_who_becomes_the_owner_looks_for_what_nobody_minds() -> None:
    follower = followed(foreign(), members=[OFF])
    follower.events(Others(busy=True), [OFF])
    assert follower.look
    assert follower.found([0], Others(), [OFF]) == [Started(0)]
    assert not follower.look


def test_a_server_whose_stop_was_cut_short_is_started_anew_not_taken_over() -> None:
    """The start carries the new owner's fence, so the stop is refused should it come yet."""
    follower = followed(foreign(stops=(0,)), foreign(stops=(1,), draining=True), members=[DRAINING])
    assert follower.events(Others(stops=(1,)), [DRAINING]) == [Died(0, STOPPED, True)]
    assert follower.look
    assert follower.found([0], Others(stops=(1,)), [OFF]) == [WakeAsked()]


# ---- who is there


def test_a_node_is_silent_from_when_its_word_last_changed() -> None:
    nodes, word = Nodes(TIMING), Word("b.1", 1)
    nodes.hear({}, 0.0)
    nodes.hear({}, 5.0)
    at = 10.0
    while at < 35.0:
        nodes.hear({"b": word}, at)  # what a dead node left
        at += 1.0
    assert nodes.busy(35.0)
    assert not nodes.drained((0, 0), 35.0), "its word is stale"
    nodes.hear({"b": word}, 40.0)
    assert not nodes.any(40.0)
    assert not nodes.busy(40.0)
    assert nodes.long_gone(310.0) == ["b"]


def test_a_node_that_worked_between_two_words_counts_as_busy_once_more() -> None:
    nodes = Nodes(TIMING)
    for at in range(40):
        nodes.hear({"b": Word("b.1", at, works=1)}, float(at))
    assert not nodes.busy(39.0)
    nodes.hear({"b": Word("b.1", 40, works=3)}, 40.0)
    assert nodes.busy(40.5)
    nodes.hear({"b": Word("b.1", 41, works=3)}, 41.0)
    assert not nodes.busy(41.0)


def test_who_was_deaf_for_longer_than_a_lease_listens_anew() -> None:
    nodes = Nodes(TIMING)
    for at in range(32):
        nodes.hear({}, float(at))
    assert not nodes.unsure(31.0)
    nodes.hear({}, 40.0)
    assert nodes.unsure(69.0)
    for at in range(41, 72):
        nodes.hear({}, float(at))
    assert not nodes.unsure(71.0)


def test_until_the_store_has_answered_requests_are_held_for_a_moment() -> None:
    """The owner may be about to stop it."""
    agreement = Agreement("m", "a.1", lambda: "e", TIMING, 100.0)
    assert agreement.others(100.5).draining
    later = agreement.others(110.0)
    assert (later.draining, later.may_stop, later.busy) == (False, False, True)


def test_an_owner_relies_on_its_lease_from_when_it_sent_the_renewal() -> None:
    agreement = Agreement("m", "a.1", lambda: "e", TIMING, 0.0)
    mine = Lease(era="e", owner="a.1", fence=5, lease_ms=6000)
    agreement.told(1.0)
    agreement.heard("a", Seen(mine, "v1", swapped=True), 1.0, 3.0)
    assert agreement.proven(5.9)
    assert not agreement.proven(6.0)
    agreement.heard("a", Seen(mine, "v1"), 5.0, 5.1)
    assert not agreement.proven(6.0), "that it was read there proves nothing"


def test_a_lease_is_taken_with_a_fence_above_every_one_that_was_heard_of() -> None:
    agreement = Agreement("m", "a.1", lambda: "e", TIMING, 0.0)
    theirs = Lease(era="e", owner="b.1", fence=5, lease_ms=6000)
    for at in range(6):
        told = agreement.told(float(at))
        assert told.lease is None
        agreement.heard("a", Seen(theirs, "v1", words={"c": Word("c.1", at, fence=9)}), at, float(at))
    told = agreement.told(6.5)
    assert told.lease is not None
    assert (told.lease.owner, told.lease.fence, told.version, told.takes) == ("a.1", 10, "v1", True)


def test_load_elsewhere_counts_for_another_member() -> None:
    machine = Machine(Terms(max=2, target=2), 0.0)
    machine.step(Tick(Load(waiting=1), foreign()), 0.1)
    assert machine.step(Room(), 0.2) == [Start(0)]
    machine.step(Started(0), 0.3)
    for tenth in range(10, 200):
        machine.step(Tick(Load(running=1, inflight=(1,)), foreign(load=4)), tenth / 10)
    assert machine.wants_room == 1


# ---- what is written down


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"fence":-1}',
        b'{"members":[64]}',
        b'{"fence":9007199254740992}',
        b'{"owner":5}',
        b" " * 20_000,
    ],
    ids=["empty", "cut", "list", "negative", "member", "large", "type", "long"],
)
def test_what_is_no_lease_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # whichever of msgspec's
        lease_of(raw)


def test_a_lease_and_a_word_are_read_as_they_were_written() -> None:
    lease = Lease("e", "a.1", True, 7, 8, 6000, 3, (0, 2), True, (1, 0, 4), (2,), (0,))
    word = Word("a.1", 4, True, 5, 6, (1,), (7, 3), 7)
    assert lease_of(pack(lease)) == lease
    assert word_of(pack(word)) == word


async def test_a_pool_of_this_node_alone_may_always_be_stopped_and_no_two_orders_are_one() -> None:
    alone = Alone("token", lambda: 5_000_000_000)
    alone.tell("m", Load(), PoolPhase.READY, [READY], 0.0)
    first, second = alone.order("m", "stop", 0), alone.order("m", "stop", 0)
    assert first.key != second.key
    assert first.fence == 5000
    assert await alone.confirm("m", first)
    assert alone.others("m") == Others()


# ---- what a node promises


def draining(fence: int = 5, drain: int = 2) -> Lease:
    return Lease(
        era="e", owner="b.1", fence=fence, beat=1, lease_ms=6000, drain=drain, members=(0,), whole=True
    )


def held(agreement: Agreement, first: float, last: float, load: Load, phase: PoolPhase) -> None:
    """Ticks in which the machine is told what others say after the node has said what it shows."""
    for tick in range(round((last - first) * 50)):
        now = first + tick / 50
        agreement.tell(load, phase, [READY], now)
        agreement.others(now)


def through(agreement: Agreement, now: float) -> tuple[int, int]:
    return agreement.told(now).word.drained


def hearing(lease: Lease, now: float = 1.0) -> Agreement:
    agreement = Agreement("m", "a.1", lambda: "e", TIMING, 0.0)
    agreement.told(now)
    agreement.heard("a", Seen(lease, "v1", words={"b": Word("b.1", 1)}), now, now)
    return agreement


def test_a_node_is_through_with_a_drain_when_it_holds_back_and_nothing_is_in_flight() -> None:
    agreement = hearing(draining())
    held(agreement, 1.0, 1.5, Load(running=1, inflight=(1,)), PoolPhase.DRAINING)
    assert through(agreement, 1.5) == (0, 0)
    held(agreement, 1.5, 1.7, Load(inflight=(0,)), PoolPhase.DRAINING)
    assert through(agreement, 1.7) == (5, 2)
    held(agreement, 1.7, 1.74, Load(inflight=(0,)), PoolPhase.READY)
    assert through(agreement, 1.74) == (0, 0)


def test_not_at_once_for_a_request_may_just_have_gone_by() -> None:
    agreement = hearing(draining())
    held(agreement, 1.0, 1.09, Load(inflight=(0,)), PoolPhase.DRAINING)
    assert through(agreement, 1.09) == (0, 0)


def test_who_could_not_hear_for_a_lease_promises_anew_whatever_it_showed_since() -> None:
    """Its machine goes on by itself then: it may have been ready between two of its ticks."""
    agreement = hearing(draining())
    held(agreement, 1.0, 2.0, Load(inflight=(0,)), PoolPhase.DRAINING)
    assert through(agreement, 2.0) == (5, 2)
    agreement.tell(Load(inflight=(0,)), PoolPhase.STARTING, [MemberPhase.STARTING], 8.0)
    assert not agreement.others(8.0).draining
    assert through(agreement, 8.0) == (0, 0)


def test_what_was_not_watched_without_a_gap_may_have_been_taken_meanwhile() -> None:
    """A lagging replica may have brought back the very version that was seen before."""
    agreement = hearing(draining())
    agreement.told(100.0)
    agreement.heard("a", Seen(draining(), "v1"), 100.0, 100.0)
    assert agreement.told(101.0).lease is None
    for at in range(101, 107):
        agreement.heard("a", Seen(draining(), "v1"), float(at), float(at))
    assert agreement.told(106.5).lease is not None


def test_an_owner_whose_lease_ran_out_waits_for_it_like_the_others() -> None:
    """What it finds may be an old copy, from before another one took over."""
    agreement = hearing(Lease(era="e", owner="a.1", fence=5, beat=1, lease_ms=6000))
    assert agreement.told(1.5).lease is None
    for at in range(1, 8):
        agreement.heard("a", Seen(Lease(era="e", owner="a.1", fence=5), "v1"), float(at), float(at))
    told = agreement.told(7.5)
    assert told.lease is not None
    assert told.lease.fence == 6


@pytest.mark.parametrize("acknowledged", [True, False], ids=["all", "not-all"])
def test_a_stop_is_written_down_only_with_every_nodes_word(acknowledged: bool) -> None:
    agreement = Agreement("m", "a.1", lambda: "e", TIMING, 0.0)
    lease = Lease(era="e", owner="a.1", fence=5, beat=1, lease_ms=6000, drain=2, members=(0,), whole=True)
    number = (5, 2) if acknowledged else (5, 1)
    agreement.tell(Load(inflight=(0,)), PoolPhase.DRAINING, [DRAINING], 0.0)
    for at in range(40):
        word = Word("b.1", at, drained=number)
        agreement.told(float(at))
        agreement.heard("a", Seen(lease, "v1", swapped=True, words={"b": word}), float(at), float(at))
    assert agreement.others(39.0).drained is acknowledged
    order = agreement.order("stop", 0, ())
    stop = agreement.confirming(order, 39.0)
    assert (stop is not None) is acknowledged
    assert stop is None or stop.stops == (1,)
    assert agreement.confirming(order, 39.0 + TIMING.proven_s) is None, "it can prove it no longer"


def test_a_node_that_leaves_in_good_order_is_not_waited_for() -> None:
    nodes = Nodes(TIMING)
    for at in range(40):
        nodes.hear({"b": Word("b.1", at, busy=True)}, float(at))
    assert nodes.busy(39.5)
    nodes.hear({"b": Word("b.1", 40, left=True)}, 40.0)
    assert not nodes.busy(40.0)
