"""Who is given room, who leaves, and who never: each rule a sentence. Times are plain numbers."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.workers.pools.house import GRACE_S, House
from penstock.workers.pools.views import Decision, Device, Evict, Grant, MemberView, Refuse, View
from penstock.workers.pools.words import MemberPhase

GIB = 1 << 30
OFF, STARTING, READY = MemberPhase.OFF, MemberPhase.STARTING, MemberPhase.READY
DRAINING, ASLEEP, STOPPING = MemberPhase.DRAINING, MemberPhase.ASLEEP, MemberPhase.STOPPING
LONG_AGO, NOW = 100.0, 1000.0


def wants(since: float = NOW - 1, **more: Any) -> View:
    """A pool that is off and has somebody waiting."""
    terms = {"need_bytes": GIB, "start_s": 5.0, "leave_s": 1.0, **more}
    return View((MemberView(OFF),), 1, waiting=1, oldest_s=since, **terms)


def preloads() -> View:
    """A pool that is to be started with the gateway, and nobody waits for."""
    return View((MemberView(OFF),), 1, True, need_bytes=GIB, start_s=5.0, leave_s=1.0)


def runs(
    *gpus: int, phase: MemberPhase = READY, used: float = LONG_AGO, running: int = 0, **more: Any
) -> View:
    """A pool with one server; without work since `used`."""
    terms = {"need_bytes": GIB, "start_s": 5.0, "leave_s": 1.0, "ready_since_s": LONG_AGO, **more}
    terms.setdefault("gpus", len(gpus))
    return View((MemberView(phase, gpus),), running=running, last_used_s=used, **terms)


def decide(
    memory: list[int], max_running: int | None = None, cap: float = 60, **views: View
) -> list[Decision]:
    devices = [Device(i, size) for i, size in enumerate(memory)]
    return House(devices, max_running=max_running, max_wait_s=cap).decide(NOW, views)


# ---- room that is free


def test_without_known_gpus_everybody_is_given_room_and_no_device():
    assert decide([], a=wants(), b=runs(), c=wants()) == [Grant("a"), Grant("c")]


def test_room_is_given_where_least_is_left_over():
    assert decide([4 * GIB, 2 * GIB], a=wants()) == [Grant("a", (1,))]


def test_a_member_on_several_gpus_needs_room_on_each():
    views = {"a": wants(gpus=2), "b": runs(1, running=1)}
    assert decide([GIB, GIB, GIB], **views) == [Grant("a", (0, 2))]
    assert decide([GIB, GIB], **views) == []


def test_what_is_granted_is_taken_for_who_comes_next():
    assert decide([GIB], a=wants(1.0), b=wants(2.0)) == [Grant("a", (0,))]


def test_who_has_waited_longest_comes_first():
    assert decide([GIB], a=wants(999.0), b=wants(998.0)) == [Grant("b", (0,))]


@pytest.mark.parametrize("phase", [STARTING, READY, DRAINING, STOPPING], ids=lambda phase: phase.name)
def test_a_server_has_its_memory_until_it_is_gone(phase: MemberPhase):
    assert decide([GIB], a=wants(), b=runs(0, phase=phase, running=1)) == []


def test_a_server_of_unknown_size_has_a_whole_gpu():
    assert decide([4 * GIB], a=wants(), b=runs(0, need_bytes=None, running=1)) == []
    assert decide([4 * GIB], a=wants(need_bytes=None), b=runs(0, running=1)) == []
    assert decide([4 * GIB, GIB], a=wants(need_bytes=None), b=runs(0, running=1)) == [Grant("a", (1,))]


def test_a_server_that_nobody_knows_the_gpu_of_may_be_on_any():
    assert decide([GIB, GIB], a=wants(), b=runs(gpus=1, running=1)) == []


def test_a_server_that_sleeps_has_little():
    views = {"a": wants(need_bytes=GIB), "b": runs(0, phase=ASLEEP, asleep_bytes=GIB // 4)}
    assert decide([2 * GIB - GIB // 4 * 3], **views) == [Grant("a", (0,))]


def test_what_other_programs_have_is_not_given_away():
    house = House([Device(0, 2 * GIB, GIB + 1)])
    (refused,) = house.decide(NOW, {"a": wants()})
    assert isinstance(refused, Refuse)
    assert "other programs" in refused.reason


def test_a_pool_that_takes_no_gpu_is_in_nobodys_way():
    assert decide([GIB], a=wants(gpus=0), b=runs(0, running=1)) == [Grant("a")]


def test_a_pool_whose_servers_are_elsewhere_takes_no_device():
    assert decide([GIB], a=wants(local=False), b=runs(0, running=1)) == [Grant("a")]
    assert decide([GIB], a=wants(), b=runs(local=False, gpus=1, running=1)) == [Grant("a", (0,))]


def test_one_that_sleeps_wakes_where_it_is_and_only_if_there_is_room():
    asleep = View(
        (MemberView(ASLEEP, (1,)),), 1, waiting=1, oldest_s=NOW, need_bytes=GIB, asleep_bytes=GIB // 8
    )
    assert decide([4 * GIB, GIB], a=asleep) == [Grant("a", (1,))]
    assert decide([4 * GIB, GIB], a=asleep, b=runs(1, running=1, need_bytes=GIB // 2)) == []


# ---- who leaves


def test_the_least_recently_used_idle_pool_leaves():
    views = {"a": wants(), "b": runs(0, used=200.0), "c": runs(1, used=150.0)}
    assert decide([GIB, GIB], **views) == [Evict("c", False, "a")]


def test_a_pool_with_work_never_leaves_before_its_turn_is_over():
    assert decide([GIB], a=wants(), b=runs(0, running=1)) == []
    assert decide([GIB], a=wants(), b=View((MemberView(READY, (0,)),), waiting=1, need_bytes=GIB)) == []


def test_a_pool_that_had_work_a_moment_ago_keeps_its_turn():
    assert decide([GIB], a=wants(), b=runs(0, used=NOW - 0.5)) == []
    assert decide([GIB], a=wants(), b=runs(0, used=NOW - 1.5)) == [Evict("b", False, "a")]


def test_as_few_leave_as_have_to():
    views = {
        "a": wants(need_bytes=2 * GIB),
        "b": runs(0, used=101.0),
        "c": runs(0, used=102.0),
        "d": runs(1, used=103.0, need_bytes=2 * GIB),
    }
    assert decide([2 * GIB, 2 * GIB], **views) == [Evict("d", False, "a")]


def test_several_leave_where_one_is_not_enough():
    views = {"a": wants(need_bytes=2 * GIB), "b": runs(0), "c": runs(0), "d": runs(0)}
    assert decide([3 * GIB], **views) == [Evict("b", False, "a"), Evict("c", False, "a")]


def test_nobody_leaves_where_that_would_not_be_enough():
    views = {"a": wants(need_bytes=2 * GIB), "b": runs(0), "c": runs(0, running=1)}
    assert decide([2 * GIB], **views) == []


def test_nobody_else_leaves_while_enough_are_leaving():
    views = {"a": wants(), "b": runs(0, phase=STOPPING), "c": runs(1)}
    assert decide([GIB, GIB], **views) == []


def test_what_leaves_for_one_is_not_given_to_another():
    large = {"a": wants(1.0, need_bytes=2 * GIB), "b": runs(0, phase=STOPPING), "c": wants(2.0)}
    assert decide([2 * GIB], **large) == [], "c would fit, but a has waited longer"


def test_among_very_many_some_that_will_do_leave():
    views = {f"p{i:02}": runs(0, used=100.0 + i) for i in range(40)}
    decisions = decide([40 * GIB], a=wants(need_bytes=20 * GIB), **views)
    assert [one.pool for one in decisions] == [f"p{i:02}" for i in range(20)]


@pytest.mark.parametrize("terms", [{"pinned": True}, {"min": 1}], ids=["pinned", "min"])
def test_one_that_stays_never_leaves(terms: dict[str, Any]):
    views = {"a": wants(), "b": runs(0, **terms), "c": runs(1)}
    assert decide([GIB, GIB], **views) == [Evict("c", False, "a")]


def test_one_that_sleeps_leaves_as_well():
    assert decide([GIB], a=wants(), b=runs(0, phase=ASLEEP, asleep_bytes=GIB // 8)) == [
        Evict("b", False, "a")
    ]


def test_a_start_is_never_broken_off():
    assert decide([GIB], a=wants(LONG_AGO), b=runs(0, phase=STARTING)) == []
    grows = View((MemberView(READY, (0,)), MemberView(STARTING, (1,))), running=3, need_bytes=GIB)
    assert decide([GIB, GIB], a=wants(LONG_AGO), b=grows) == []


def test_nobody_leaves_for_a_pool_that_nobody_waits_for_and_others_come_first():
    house = House([Device(0, GIB)])
    assert house.decide(NOW, {"a": preloads(), "b": runs(0)}) == []
    assert house.decide(NOW + 900, {"a": preloads(), "b": runs(0)}) == []
    assert house.decide(NOW + 901, {"a": preloads(), "b": wants(NOW)}) == [Grant("b", (0,))]
    assert house.decide(NOW + 902, {"a": preloads()}) == [Grant("a", (0,))]


# ---- groups, and how many run


def test_of_a_group_one_runs():
    views = {"a": wants(group="g"), "b": runs(1, group="g"), "c": wants(group="g"), "d": wants(group="h")}
    assert decide([4 * GIB, 4 * GIB], **views) == [Evict("b", False, "a"), Grant("d", (0,))]
    busy = {**views, "b": runs(1, group="g", running=1)}
    assert decide([4 * GIB, 4 * GIB], **busy) == [Grant("d", (1,))]


def test_no_more_pools_run_than_may():
    views = {"a": wants(), "b": runs(0, used=150.0), "c": runs(0, used=120.0)}
    assert decide([9 * GIB], 2, **views) == [Evict("c", False, "a")]
    assert decide([9 * GIB], 3, **views) == [Grant("a", (0,))]
    assert decide([], 1, a=wants(), b=runs(running=1)) == []


def test_more_members_of_a_pool_are_still_one_pool():
    grows = View((MemberView(READY, (0,)), MemberView(OFF)), 1, running=3, need_bytes=GIB)
    assert decide([2 * GIB], 1, a=grows) == [Grant("a", (0,))]


# ---- turns


def test_a_turn_ends_when_somebody_would_wait_too_long_otherwise():
    # leaving takes 1 s and the start 5 s: who has waited 60 - 3 - 6 s is served just in time
    assert decide([GIB], a=wants(NOW - 50.9), b=runs(0, running=1)) == []
    assert decide([GIB], a=wants(NOW - 51.1), b=runs(0, running=1)) == [Evict("b", True, "a")]


def test_a_turn_ends_earlier_for_those_who_come_after_the_next():
    # c starts after a has started, and left again: 1 + 5 + 1 + 5 s
    views = {"a": wants(NOW - 45.5), "b": runs(0, running=1), "c": wants(NOW - 45.1)}
    assert decide([GIB], **views) == [Evict("b", True, "a")]
    views["c"] = wants(NOW - 44.9)
    assert decide([GIB], **views) == []


def test_turns_end_by_what_was_learned():
    slow = wants(NOW - 30, start_s=30.0)
    assert decide([GIB], a=slow, b=runs(0, running=1)) == [Evict("b", True, "a")]
    assert decide([GIB], a=wants(NOW - 30), b=runs(0, running=1)) == []


def test_a_turn_does_not_end_before_those_who_waited_for_it_are_served():
    late = wants(NOW - 59)
    just = View((MemberView(READY, (0,)),), waiting=3, ready_since_s=NOW - 0.1, need_bytes=GIB)
    assert decide([GIB], a=late, b=just) == []
    let_through = runs(0, used=NOW - 0.02, ready_since_s=NOW - 0.1)
    assert decide([GIB], a=late, b=let_through) == [], "they are on their way to the server"
    served = runs(0, running=3, ready_since_s=NOW - 0.1)
    assert decide([GIB], a=late, b=served) == [Evict("b", True, "a")]
    stuck = View((MemberView(READY, (0,)),), waiting=3, ready_since_s=NOW - GRACE_S, need_bytes=GIB)
    assert decide([GIB], a=late, b=stuck) == [Evict("b", True, "a")]


def test_when_a_turn_ends_who_is_idle_leaves_before_who_has_work():
    views = {"a": wants(NOW - 59), "b": runs(0, running=1), "c": runs(1, used=NOW - 0.3)}
    assert decide([GIB, GIB], **views) == [Evict("c", False, "a")]


def test_the_turn_that_has_lasted_longest_ends():
    views = {
        "a": wants(NOW - 59),
        "b": runs(0, running=1, ready_since_s=300.0),
        "c": runs(1, running=1, ready_since_s=200.0),
    }
    assert decide([GIB, GIB], **views) == [Evict("c", True, "a")]


def test_no_turn_ends_for_one_member_more():
    grows = View(
        (MemberView(READY, (0,)), MemberView(OFF)),
        1,
        running=9,
        oldest_s=LONG_AGO,
        need_bytes=GIB,
        start_s=1.0,
    )
    assert decide([GIB, GIB], a=grows, b=runs(1, running=1)) == []
    assert decide([GIB, GIB], a=grows, b=runs(1)) == [Evict("b", False, "a")]


def test_a_turn_of_one_that_stays_never_ends():
    assert decide([GIB, GIB], a=wants(1.0), b=runs(0, min=1, running=1), c=runs(1, phase=STARTING)) == []


def test_who_was_asked_to_start_by_nobodys_request_waits_since_then():
    house = House([Device(0, GIB)], max_wait_s=60)
    asked = View((MemberView(OFF),), 1, need_bytes=GIB, start_s=5.0, leave_s=1.0)
    busy = runs(0, running=1)
    assert house.decide(NOW, {"a": asked, "b": busy}) == []
    assert house.decide(NOW + 52, {"a": asked, "b": busy}) == [Evict("b", True, "a")]
    assert house.decide(NOW + 53, {"a": runs(phase=OFF), "b": busy}) == []
    assert house.decide(NOW + 54, {"a": asked, "b": busy}) == [], "it had stopped asking"


def test_a_start_that_another_had_to_leave_for_is_a_switch():
    house = House([Device(0, GIB)])
    assert house.decide(NOW, {"a": wants(), "b": runs(0)}) == [Evict("b", False, "a")]
    assert house.decide(NOW, {"a": wants(), "b": runs(0, phase=STOPPING)}) == []
    assert house.decide(NOW, {"a": wants(), "b": runs(0, phase=OFF)}) == [Grant("a", (0,), switch=True)]
    assert house.decide(NOW, {"a": wants(), "b": runs(0, phase=OFF)}) == [Grant("a", (0,))]


# ---- never


@pytest.mark.parametrize(
    ("memory", "views", "reason"),
    [
        (
            [GIB],
            {"a": wants(need_bytes=2 * GIB)},
            "it takes 2.0 GiB of 1 GPU, this node has 1 of at most 1.0 GiB",
        ),
        ([GIB], {"a": wants(gpus=2)}, "it takes 1.0 GiB of 2 GPUs, this node has 1 of"),
        ([GIB], {"a": wants(need_bytes=None, gpus=2)}, "it takes all of 2 GPUs, this node has 1 of"),
        ([GIB], {"a": wants(), "b": runs(0, pinned=True)}, "and b always runs"),
        ([GIB], {"a": wants(), "b": runs(0, min=1, running=3)}, "and b always runs"),
        ([9 * GIB], {"a": wants(group="g"), "b": runs(0, min=1, group="g")}, "b always runs, and does not"),
    ],
    ids=["large", "gpus", "unknown", "pinned", "min", "group"],
)
def test_who_can_never_have_room_is_told_why(memory: list[int], views: dict[str, View], reason: str):
    (refused,) = decide(memory, **views)
    assert isinstance(refused, Refuse)
    assert refused.pool == "a"
    assert reason in refused.reason


def test_with_as_many_that_stay_as_may_run_the_others_are_told_so():
    (refused,) = decide([9 * GIB], 1, a=wants(), b=runs(0, min=1))
    assert isinstance(refused, Refuse)


def test_one_that_stays_but_is_leaving_is_waited_for():
    assert decide([GIB], a=wants(), b=runs(0, pinned=True, phase=STOPPING)) == []


def test_a_pool_whose_own_server_is_leaving_waits_for_its_place():
    again = View((MemberView(STOPPING, (0,)), MemberView(OFF)), 1, waiting=1, oldest_s=NOW, need_bytes=GIB)
    assert decide([GIB], a=again) == []
    assert decide([2 * GIB], a=again) == [Grant("a", (0,))]


def test_what_is_reserved_counts_every_member_until_it_is_gone():
    house = House([Device(0, 8 * GIB), Device(1, 8 * GIB)])
    views = {
        "a": runs(0, phase=STOPPING, need_bytes=3 * GIB),
        "b": runs(0, phase=ASLEEP, asleep_bytes=GIB),
        "c": runs(1, phase=STARTING, need_bytes=None),
    }
    assert house.reserved(views) == {0: 4 * GIB, 1: 8 * GIB}
