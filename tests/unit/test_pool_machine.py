"""The machine of one pool, rule by rule: what is ordered, and what is shown."""

from __future__ import annotations

import math

import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.gateway.config.pool import WebhookPool
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.words import (
    Died,
    Evict,
    Load,
    MemberPhase,
    Others,
    Room,
    Sleep,
    SleepFailed,
    Slept,
    Start,
    Started,
    StartFailed,
    Stop,
    StopAsked,
    StopFailed,
    Stopped,
    Tick,
    Wake,
    WakeAsked,
    WakeFailed,
    Woke,
)

OFF, STARTING, READY = MemberPhase.OFF, MemberPhase.STARTING, MemberPhase.READY
DRAINING, ASLEEP, STOPPING = MemberPhase.DRAINING, MemberPhase.ASLEEP, MemberPhase.STOPPING
NOT_OWNER = Others(may_stop=False)


class Pool:
    """A machine and a hand on its clock. By default idle for 30 s ends it, and each server is meant for 2 requests."""

    def __init__(self, now=0.0, **terms):
        self.machine = Machine(Terms(**{"target": 2, "idle_timeout_s": 30.0, **terms}), now)
        self.now = now

    def tell(self, event, at=None):
        self.now = self.now if at is None else at
        return self.machine.step(event, self.now)

    def tick(self, at=None, others=None, **load):
        return self.tell(Tick(Load(**load), others or Others()), at)

    def until(self, end, others=None, step=0.02, **load):
        """Ticks up to a time; what they ordered."""
        made = []
        while self.now < end:
            made += self.tick(min(end, self.now + step), others, **load)
        return made

    def demand(self, at=None):
        """One request waits and there is room."""
        self.tick(at, waiting=1)
        return self.tell(Room())

    def up(self, *members, at=None):
        """These run."""
        for member in members or (0,):
            self.tell(Started(member), at)
        self.tick()
        return self

    @property
    def shows(self):
        return self.machine.phase

    @property
    def members(self):
        return self.machine.members


# ---- demand


def test_a_pool_begins_with_every_member_off_and_wants_nothing():
    pool = Pool(max=3)
    assert pool.shows is PoolPhase.OFF
    assert pool.members == [OFF, OFF, OFF]
    assert pool.until(100) == []
    assert pool.machine.wants_room == 0


def test_a_waiter_wants_room_and_room_starts_one_member():
    pool = Pool(max=3)
    assert pool.tick(1, waiting=1000) == []
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(0)]
    assert pool.shows is PoolPhase.STARTING
    assert pool.machine.wants_room == 0
    assert pool.tell(Room()) == []
    assert pool.until(9, waiting=1000) == []
    pool.tell(Started(0), 9.5)
    assert pool.shows is PoolPhase.READY
    assert (pool.machine.ready_since, pool.machine.since) == (9.5, 9.5)


def test_who_leaves_before_there_is_room_takes_the_demand_along():
    pool = Pool()
    pool.tick(1, waiting=1)
    pool.tick(2)
    assert pool.machine.wants_room == 0
    assert pool.tell(Room()) == []


def test_starting_needs_no_ownership():
    pool = Pool()
    pool.tick(1, NOT_OWNER, waiting=1)
    assert pool.tell(Room()) == [Start(0)]


def test_an_operator_wakes_a_pool_as_one_request_would_and_it_stays_for_its_idle_time():
    pool = Pool()
    pool.tell(WakeAsked(), 1)
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(0)]
    pool.up(at=10)
    assert pool.until(39.9) == []
    assert pool.shows is PoolPhase.READY
    assert pool.until(40.2) == [Stop(0)]


def test_an_operator_who_wakes_a_ready_pool_has_its_idle_time_begin_anew():
    pool = Pool().up()
    pool.tell(WakeAsked(), 25)
    assert pool.until(54.9) == []
    assert pool.until(56) == [Stop(0)]


def test_preload_starts_one_member_without_any_request_once():
    pool = Pool(preload=True, max=2)
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(0)]
    pool.up()
    assert pool.until(31) == [Stop(0)]
    pool.tell(Stopped(0))
    pool.until(40)
    assert pool.machine.wants_room == 0


def test_members_below_min_are_started_and_never_stopped_for_idleness():
    pool = Pool(min=2, max=3)
    assert pool.machine.wants_room == 2
    assert [pool.tell(Room()), pool.tell(Room()), pool.tell(Room())] == [[Start(0)], [Start(1)], []]
    pool.up(0, 1)
    assert pool.until(200, step=1) == []
    assert pool.members == [READY, READY, OFF]


# ---- idle


def test_an_idle_pool_drains_then_stops_and_the_last_byte_counts():
    pool = Pool().up()
    pool.until(50, running=1, inflight=(1,))  # a stream outlives every idle time
    assert pool.shows is PoolPhase.READY
    assert pool.machine.idle_since is None
    pool.tick(50.02, finished_s=50.01, inflight=(0,))
    assert pool.machine.idle_since == 50.01
    assert pool.until(80, finished_s=50.01) == []
    assert pool.shows is PoolPhase.READY
    pool.tick(80.01, finished_s=50.01)
    assert pool.shows is PoolPhase.DRAINING
    assert pool.members == [DRAINING]
    assert pool.until(80.1, finished_s=50.01) == []
    assert pool.until(80.2, finished_s=50.01) == [Stop(0)]
    assert pool.shows is PoolPhase.STOPPING
    pool.tell(Stopped(0))
    assert pool.shows is PoolPhase.OFF


def test_a_request_that_finished_between_two_ticks_counts_as_work():
    pool = Pool().up()
    assert pool.until(29, finished_s=20.0) == []
    assert pool.until(49.9, finished_s=20.0) == []
    assert pool.until(51, finished_s=20.0) == [Stop(0)]


def test_quiet_has_to_be_seen_twice_and_not_before_the_state_was_shown_for_a_tenth_of_a_second():
    pool = Pool().up()
    pool.tick(30)
    assert pool.shows is PoolPhase.DRAINING
    assert pool.tick(30.05) == []
    assert pool.tick(30.09) == []
    assert pool.tick(30.1) == []
    assert pool.tick(30.1) == []  # the same moment is no second look
    assert pool.tick(30.11) == [Stop(0)]


def test_a_drain_for_a_turn_looks_twice_again_after_each_sign_of_work():
    pool = Pool().up()
    pool.tell(Evict(turn=True), 1)
    pool.tick(1.2)
    assert pool.tick(1.3, queued=1) == []
    assert pool.tick(1.4) == []
    assert pool.tick(1.5, inflight=(1,)) == []
    assert pool.tick(1.6) == []
    assert pool.tick(1.7) == [Stop(0)]


def test_demand_in_a_drain_for_idleness_cancels_it():
    for load in ({"waiting": 1}, {"running": 1}, {"queued": 1}):
        pool = Pool().up()
        pool.tick(30)
        assert pool.shows is PoolPhase.DRAINING
        assert pool.tick(30.02, **load) == []
        assert pool.shows is PoolPhase.READY
        assert pool.members == [READY]
        assert pool.until(59, finished_s=30.02) == []


def test_a_request_in_stopping_starts_the_member_again_once_it_is_gone():
    pool = Pool().up()
    assert pool.until(30.2) == [Stop(0)]
    pool.until(31, waiting=1)
    assert pool.machine.wants_room == 0
    pool.tell(Stopped(0))
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(0)]


def test_the_clock_that_jumps_ends_nothing_before_quiet_was_looked_for():
    pool = Pool().up()
    assert pool.tick(10_000, running=1) == []
    assert pool.tick(20_000, finished_s=19_000) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.tick(30_000) == []
    assert pool.tick(40_000) == [Stop(0)]


def test_a_clock_that_runs_backwards_is_held():
    pool = Pool().up()
    pool.until(30.05)
    pool.tick(30.3)
    assert pool.shows is PoolPhase.DRAINING
    assert pool.tick(2) == []
    assert pool.tick(30.4) == [Stop(0)]


# ---- sleep


def test_ready_members_sleep_first_and_are_stopped_from_sleep_directly():
    pool = Pool(sleep_after_s=10.0, sleep_level=2).up()
    assert pool.until(10.2) == [Sleep(0, 2)]
    assert pool.shows is PoolPhase.DRAINING
    pool.tell(Slept(0))
    assert pool.shows is PoolPhase.ASLEEP
    assert pool.until(29.9) == []
    assert pool.tick(30) == [Stop(0)]
    assert pool.shows is PoolPhase.STOPPING


def test_a_sleeping_member_is_woken_from_the_level_it_sleeps_at():
    pool = Pool(sleep_after_s=10.0, sleep_level=2).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.machine.swap(Terms(sleep_after_s=10.0, sleep_level=1), pool.now)
    assert pool.demand() == [Wake(0, 2)]
    assert pool.shows is PoolPhase.STARTING
    pool.tell(Woke(0))
    assert pool.shows is PoolPhase.READY


def test_who_comes_while_a_member_falls_asleep_has_it_woken_then():
    pool = Pool(sleep_after_s=10.0).up()
    assert pool.until(10.2) == [Sleep(0, 1)]
    pool.until(11, waiting=1)
    assert pool.shows is PoolPhase.DRAINING
    assert pool.machine.wants_room == 0
    pool.tell(Slept(0))
    assert pool.tell(Room()) == [Wake(0, 1)]


def test_a_wake_that_fails_turns_into_a_restart_and_waiters_go_on_waiting():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.demand()
    assert pool.tell(WakeFailed(0, "no answer")) == [Stop(0)]
    pool.tick(waiting=1)
    pool.tell(Stopped(0))
    assert pool.tell(Room()) == [Start(0)]
    assert pool.machine.failures == 0
    assert pool.machine.reason == "no answer"


def test_a_sleep_that_fails_turns_into_a_stop():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    assert pool.tell(SleepFailed(0, "404")) == [Stop(0)]
    pool.tell(Stopped(0))
    assert pool.shows is PoolPhase.OFF


def test_a_sleep_that_never_ends_is_a_stop_after_the_idle_time():
    pool = Pool(sleep_after_s=10.0).up()
    assert pool.until(29.9) == [Sleep(0, 1)]
    assert pool.until(30.2) == [Stop(0)]
    pool.tell(Slept(0))
    assert pool.members == [STOPPING]


def test_min_counts_who_sleeps_and_keeps_them_from_being_stopped():
    pool = Pool(min=1, sleep_after_s=10.0).up()
    assert pool.until(10.2) == [Sleep(0, 1)]
    pool.tell(Slept(0))
    assert pool.until(300, step=1) == []
    assert pool.machine.wants_room == 0
    assert pool.shows is PoolPhase.ASLEEP


def test_members_that_sleep_while_others_work_are_woken_before_others_start_and_end_after_the_idle_time():
    pool = Pool(max=3, sleep_after_s=10.0).up(0, 1)
    assert pool.until(10.2) == [Sleep(0, 1), Sleep(1, 1)]
    pool.tell(Slept(0))
    pool.tell(Slept(1))
    assert pool.demand() == [Wake(0, 1)]
    pool.tell(Woke(0))
    pool.until(20.5, running=3)
    assert pool.tell(Room()) == [Wake(1, 1)]
    pool.tell(WakeFailed(1, "x"))
    pool.tell(Stopped(1))
    pool.tell(Slept(2))  # found
    assert pool.until(50, running=1) == []
    assert pool.until(51, running=1) == [Stop(2)]


# ---- eviction and stop


@pytest.mark.parametrize(
    "load", [{"waiting": 1}, {"queued": 1}, {"running": 1}], ids=["waits", "queued", "runs"]
)
def test_a_pool_with_work_is_not_evicted(load):
    pool = Pool().up()
    pool.tick(5, **load)
    assert pool.tell(Evict()) == []
    assert pool.shows is PoolPhase.READY


def test_a_pool_with_work_elsewhere_is_not_evicted():
    pool = Pool().up()
    pool.tick(5, Others(busy=True))
    assert pool.tell(Evict()) == []
    assert pool.shows is PoolPhase.READY


def test_an_idle_pool_is_evicted_and_who_comes_cancels_that():
    pool = Pool().up()
    pool.tick(5)
    pool.tell(Evict())
    assert pool.shows is PoolPhase.DRAINING
    pool.tick(5.02, waiting=1)
    assert pool.shows is PoolPhase.READY
    pool.tick(5.04)
    pool.tell(Evict())
    assert pool.until(6) == [Stop(0)]


def test_a_pool_whose_turn_is_over_finishes_what_runs_and_has_the_others_wait_and_wakes_again():
    pool = Pool().up()
    pool.tick(5, running=2)
    pool.tell(Evict(turn=True))
    assert pool.shows is PoolPhase.DRAINING
    assert pool.until(60, running=1, waiting=3) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.machine.wants_room == 0
    assert pool.until(60.2, waiting=3) == [Stop(0)]
    pool.tell(Stopped(0))
    assert pool.machine.wants_room == 1


def test_a_sleeping_pool_is_evicted_at_once():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.tick(12)
    assert pool.tell(Evict()) == [Stop(0)]


def test_an_eviction_makes_a_drain_for_sleep_a_stop():
    pool = Pool(sleep_after_s=10.0).up()
    pool.tick(10)
    assert pool.shows is PoolPhase.DRAINING
    pool.tell(Evict())
    assert pool.until(10.2) == [Stop(0)]


def test_a_start_nobody_waits_for_is_broken_off_by_an_eviction_and_its_late_success_means_nothing():
    pool = Pool()
    pool.demand(1)
    pool.tick(2)
    pool.tell(Evict())
    assert pool.members == [DRAINING]
    assert pool.until(3) == [Stop(0)]
    pool.tell(Started(0))
    assert pool.members == [STOPPING]
    pool.tell(Stopped(0))
    assert pool.members == [OFF]


def test_who_comes_while_a_start_is_broken_off_has_it_go_on():
    pool = Pool()
    pool.demand(1)
    pool.tick(2)
    pool.tell(Evict())
    pool.tick(2.02, waiting=1)
    assert pool.members == [STARTING]
    pool.tell(Started(0))
    assert pool.shows is PoolPhase.READY


def test_a_pool_with_members_that_always_run_is_not_evicted():
    pool = Pool(min=1).up()
    for turn in (False, True):
        assert pool.tell(Evict(turn)) == []
        assert pool.shows is PoolPhase.READY


def test_an_operator_stops_a_pool_when_nothing_is_in_flight_and_the_next_request_wakes_it():
    pool = Pool(min=1).up()
    pool.tick(5, running=1)
    pool.tell(StopAsked())
    assert pool.shows is PoolPhase.DRAINING
    assert pool.until(10, running=1) == []
    assert pool.until(10.2) == [Stop(0)]
    pool.tell(Stopped(0))
    pool.until(100, step=1)
    assert pool.machine.wants_room == 0  # although one is to run always
    assert pool.demand() == [Start(0)]


def test_an_operator_who_stops_and_wakes_has_it_woken_when_it_is_stopped():
    pool = Pool().up()
    pool.tell(StopAsked(), 1)
    pool.tell(WakeAsked())
    assert pool.until(1.2) == [Stop(0)]
    pool.tell(Stopped(0))
    assert pool.machine.wants_room == 1


def test_what_dies_in_a_drain_ends_it():
    pool = Pool().up()
    pool.tell(StopAsked(), 1)
    pool.tell(Died(0, "killed"))
    pool.tick(1.02)
    assert pool.shows is PoolPhase.OFF


# ---- other nodes


@pytest.mark.parametrize(
    "others",
    [Others(may_stop=False), Others(busy=True)],
    ids=["not the owner", "busy elsewhere"],
)
def test_nothing_is_drained_by_who_may_not_or_while_another_node_has_work(others):
    pool = Pool(sleep_after_s=10.0).up()
    assert pool.until(100, others) == []
    assert pool.shows is PoolPhase.READY


def test_a_drain_waits_until_the_other_nodes_have_drained():
    pool = Pool().up()
    assert pool.until(60, Others(drained=False)) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.until(60.2) == [Stop(0)]


def test_a_sleeping_pool_is_drained_first_where_other_nodes_do_not_hold_back_yet():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    assert pool.until(40, Others(drained=False)) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.until(40.2) == [Stop(0)]


@pytest.mark.parametrize("event", [Evict(turn=True), StopAsked()], ids=["turn", "operator"])
def test_who_loses_the_right_to_stop_lets_requests_through_again(event):
    pool = Pool().up()
    pool.tell(event, 1)
    assert pool.shows is PoolPhase.DRAINING
    assert pool.tick(1.2, NOT_OWNER) == []
    assert pool.shows is PoolPhase.READY
    assert pool.tell(event) == []
    assert pool.shows is PoolPhase.READY


def test_before_the_first_tick_nothing_is_stopped():
    pool = Pool()
    pool.tell(Started(0))
    for event in (Evict(), Evict(turn=True), StopAsked()):
        assert pool.tell(event) == []
        assert pool.shows is PoolPhase.READY


def test_while_another_node_drains_the_pool_requests_are_held_and_nothing_is_done():
    pool = Pool(sleep_after_s=10.0).up()
    drains = Others(may_stop=False, draining=True)
    assert pool.until(60, drains, waiting=1) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.machine.wants_room == 0
    pool.tell(Died(0, "stopped by another node"))
    assert pool.shows is PoolPhase.DRAINING
    pool.tick(61, NOT_OWNER, waiting=1)
    assert pool.tell(Room()) == [Start(0)]
    pool = Pool(sleep_after_s=10.0).up()
    assert pool.until(60, Others(draining=True)) == []
    assert pool.tell(StopAsked()) == []
    assert pool.until(61, NOT_OWNER) == []
    assert pool.shows is PoolPhase.READY


def test_two_nodes_do_not_both_stop_a_pool():
    pool = Pool().up()
    pool.tell(StopAsked(), 1)
    assert pool.until(2, Others(draining=True)) == []


def test_a_restart_after_a_wake_that_failed_waits_for_the_right_to_stop():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.demand()
    pool.tick(others=NOT_OWNER, waiting=1)
    assert pool.tell(WakeFailed(0, "x")) == []
    assert pool.members == [STOPPING]
    assert pool.tick(13, waiting=1) == [Stop(0)]


def test_another_node_puts_a_member_to_sleep_and_wakes_it():
    pool = Pool(sleep_after_s=10.0).up()
    pool.tick(1, NOT_OWNER)
    pool.tell(Slept(0))
    assert pool.shows is PoolPhase.ASLEEP
    pool.tell(Started(0))
    assert pool.shows is PoolPhase.READY
    pool.tick(2, NOT_OWNER, running=1, inflight=(1,))
    pool.tell(Slept(0))  # what has a request is not asleep
    assert pool.shows is PoolPhase.READY


# ---- failures


def test_a_failed_start_shows_why_and_how_long_and_then_who_waits_has_it_tried_again():
    pool = Pool()
    waited = []
    for failures in range(1, 9):
        pool.demand()
        assert pool.tell(StartFailed(0, f"reason {failures}")) == []
        assert pool.shows is PoolPhase.FAILED
        assert (pool.machine.failures, pool.machine.reason) == (failures, f"reason {failures}")
        waited.append(pool.machine.not_before - pool.now)
        pool.tick(math.nextafter(pool.machine.not_before, 0), waiting=1)
        assert pool.shows is PoolPhase.FAILED
        assert pool.machine.wants_room == 0
        pool.tick(pool.machine.not_before, waiting=1)
        assert pool.shows is PoolPhase.OFF
        assert pool.machine.wants_room == 1
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_back_off_begins_anew_once_a_start_has_held_for_a_while():
    pool = Pool(idle_timeout_s=1000.0)
    for _ in range(3):
        pool.demand()
        pool.tell(StartFailed(0, "x"))
        pool.tick(pool.machine.not_before)
    pool.demand()
    pool.tell(Started(0))
    pool.until(pool.now + 10)
    pool.tell(Died(0, "killed"))
    pool.demand()
    pool.tell(StartFailed(0, "x"))
    assert pool.machine.not_before == pool.now + 1


def test_an_operators_wake_that_failed_is_not_tried_again_but_preload_and_min_are():
    for terms, again in (({}, 0), ({"preload": True}, 1), ({"min": 1}, 1)):
        pool = Pool(**terms)
        pool.tell(WakeAsked(), 1)
        pool.tell(Room())
        pool.tell(StartFailed(0, "x"))
        pool.tick(2)
        assert pool.machine.wants_room == again


def test_with_another_member_ready_or_starting_only_the_one_that_failed_backs_off():
    pool = Pool(min=2, max=2)
    pool.tell(Room())
    pool.tell(Room())
    pool.tell(StartFailed(0, "x"))
    assert pool.shows is PoolPhase.STARTING
    assert pool.machine.wants_room == 0
    pool.tell(Started(1))
    assert pool.shows is PoolPhase.READY
    assert pool.machine.failures == 0
    pool.tick(1)
    assert pool.tell(Room()) == [Start(0)]
    pool.tell(StartFailed(0, "x"))
    assert (pool.shows, pool.machine.failures) == (PoolPhase.READY, 0)
    pool.tick(2.9)
    assert pool.machine.wants_room == 0
    pool.tick(3)
    assert pool.machine.wants_room == 1


def test_a_ready_member_that_dies_is_started_at_once_with_demand_and_without_it_is_off():
    pool = Pool().up()
    pool.tick(1, waiting=1)
    pool.tell(Died(0, "killed"))
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(0)]
    pool = Pool().up()
    pool.tell(Died(0, "killed"), 5)
    assert pool.shows is PoolPhase.OFF
    assert pool.until(10) == []
    assert pool.machine.wants_room == 0


def test_a_member_that_dies_again_and_again_as_soon_as_it_is_ready_counts_as_a_failed_start():
    pool = Pool()
    for _ in range(2):
        pool.demand()
        pool.tell(Started(0))
        pool.tell(Died(0, "killed"))
        assert pool.machine.wants_room == 1
    pool.demand()
    pool.tell(Started(0))
    pool.tell(Died(0, "killed"))
    assert pool.shows is PoolPhase.FAILED
    assert (pool.machine.failures, pool.machine.reason) == (1, "killed")
    assert pool.machine.not_before == pool.now + 1


def test_deaths_far_apart_are_started_again_at_once_each_time():
    pool = Pool(idle_timeout_s=1000.0)
    for _ in range(5):
        pool.demand()
        pool.tell(Started(0))
        pool.until(pool.now + 10)
        pool.tell(Died(0, "killed"))
    assert pool.machine.failures == 0


def test_a_stop_that_fails_is_tried_again_later_and_later_and_the_member_is_not_off_meanwhile():
    pool = Pool().up()
    pool.until(30.2)
    for wait in (1, 2, 4):
        assert pool.tell(StopFailed(0, "x")) == []
        then = pool.now + wait
        assert pool.until(then - 0.01, waiting=1) == []
        assert pool.members == [STOPPING]
        assert pool.machine.wants_room == 0
        assert pool.tick(then, waiting=1) == [Stop(0)]
    pool.tell(StopFailed(0, "x"))
    pool.tell(Died(0, "gone by itself"))
    assert pool.members == [OFF]


@pytest.mark.parametrize(
    ("outcome", "most"),
    [
        ([StartFailed(0, "x")], 16),
        ([Started(0), Died(0, "x")], 2 + 16),
    ],
    ids=["never starts", "dies at once"],
)
def test_what_goes_wrong_for_ten_minutes_is_not_tried_without_end(outcome, most):
    pool, starts = Pool(), 0
    while pool.now < 600:
        pool.tick(pool.now + 0.02, waiting=1)
        for _ in pool.tell(Room()):
            starts += 1
            for event in outcome:
                pool.tell(event)
    assert 10 < starts <= most


def test_nothing_is_started_while_a_pool_with_a_member_to_spare_drains_or_has_failed():
    pool = Pool(max=2).up()
    pool.tell(StopAsked(), 1)
    pool.tick(waiting=1)
    assert pool.machine.wants_room == 0
    pool = Pool(max=2)
    pool.demand(1)
    pool.tell(StartFailed(0, "x"))
    pool.tick(1.5, waiting=1)
    assert pool.machine.wants_room == 0
    pool.tick(2, waiting=1)
    assert pool.machine.wants_room == 1


def test_an_operator_who_wakes_a_sleeping_pool_has_it_wait_for_room_as_long_as_that_takes():
    pool = Pool(sleep_after_s=10.0).up()
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.tell(WakeAsked())
    assert pool.until(100) == []
    assert pool.tell(Room()) == [Wake(0, 1)]


def test_what_another_node_has_just_put_to_sleep_is_not_stopped_before_requests_had_time_to_see_it():
    pool = Pool().up()
    pool.tick(1)
    pool.tell(Slept(0))
    assert pool.tell(Evict()) == []
    assert pool.shows is PoolPhase.DRAINING
    assert pool.until(1.2) == [Stop(0)]


ABOUT = [
    Started(0),
    StartFailed(0, "r"),
    Stopped(0),
    StopFailed(0, "r"),
    Slept(0),
    SleepFailed(0, "r"),
    Woke(0),
    WakeFailed(0, "r"),
    Died(0, "r"),
]


def _in(name):
    """A pool whose only member is in that phase."""
    pool = Pool(sleep_after_s=10.0)
    pool.tick(0)
    if name in ("starting", "broken off"):
        pool.demand(0.1)
    elif name != "off":
        pool.up()
    if name == "broken off":
        pool.tick(0.2)
        pool.tell(Evict())
    if name in ("falling asleep", "asleep", "waking", "stopping", "stop to be repeated"):
        pool.until(10.2)
    if name in ("asleep", "waking"):
        pool.tell(Slept(0))
    if name in ("draining",):
        pool.tick(10)
    if name == "waking":
        pool.demand()
    if name in ("stopping", "stop to be repeated"):
        pool.tell(SleepFailed(0, "r"))
    if name == "stop to be repeated":
        pool.tell(StopFailed(0, "r"))
    return pool


# what becomes of the member, for the events in the order above
TABLE = {
    "off": (READY, OFF, OFF, OFF, ASLEEP, OFF, OFF, OFF, OFF),
    "starting": (READY, OFF, *[STARTING] * 7),
    "ready": (READY, READY, READY, READY, ASLEEP, READY, READY, READY, OFF),
    "draining": (DRAINING, DRAINING, DRAINING, DRAINING, ASLEEP, DRAINING, DRAINING, DRAINING, OFF),
    "broken off": (DRAINING, OFF, *[DRAINING] * 7),
    "falling asleep": (DRAINING, DRAINING, DRAINING, DRAINING, ASLEEP, STOPPING, *[DRAINING] * 3),
    "asleep": (READY, ASLEEP, ASLEEP, ASLEEP, ASLEEP, ASLEEP, ASLEEP, ASLEEP, OFF),
    "waking": (*[STARTING] * 6, READY, STOPPING, STARTING),
    "stopping": (STOPPING, STOPPING, OFF, *[STOPPING] * 6),
    "stop to be repeated": (STOPPING, STOPPING, OFF, *[STOPPING] * 5, OFF),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_event_has_one_outcome_in_every_phase_and_a_second_one_adds_nothing(name):
    for event, expected in zip(ABOUT, TABLE[name], strict=True):
        pool = _in(name)
        pool.tell(event)
        assert pool.members == [expected], event
        if pool.members != [ASLEEP] or event != Started(0):
            pool.tell(event)
            again = READY if (expected, event) == (ASLEEP, Started(0)) else expected
            assert pool.members == [again], event
        assert all(phase in (OFF, STARTING, READY, DRAINING, ASLEEP, STOPPING) for phase in pool.members)


def test_an_event_about_a_member_that_does_not_exist_means_nothing():
    pool = Pool().up()
    assert pool.tell(Died(1, "x")) == []
    assert pool.tell(Stopped(-1)) == []
    assert pool.members == [READY]


# ---- more than one member


def test_one_more_starts_when_there_was_too_much_for_ten_seconds():
    pool = Pool(max=3).up()
    pool.until(5, running=3)
    pool.until(5.5, running=2)  # not over the target of 2: the ten seconds begin anew
    pool.until(15.5, running=2, queued=1)
    assert pool.machine.wants_room == 0
    pool.until(15.6, running=1, queued=1, waiting=1)
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(1)]
    assert pool.shows is PoolPhase.READY
    pool.until(60, running=9)
    assert pool.machine.wants_room == 0  # one at a time
    pool.tell(Started(1))
    pool.until(69.9, running=9)
    assert pool.machine.wants_room == 0
    pool.until(70.1, running=9)
    assert pool.tell(Room()) == [Start(2)]
    pool.tell(Started(2))
    pool.until(100, running=99)
    assert pool.machine.wants_room == 0


def test_the_emptiest_drains_when_the_rest_could_carry_the_load_at_half_of_the_target():
    pool = Pool(max=3, target=4).up(0, 1, 2)
    assert pool.until(100, running=5, inflight=(3, 1, 1)) == []
    assert pool.members == [READY] * 3
    assert pool.until(129.9, running=4, inflight=(3, 1, 0)) == []
    assert pool.members == [READY] * 3
    pool.until(130.1, running=4, inflight=(3, 0, 1))
    assert pool.members == [READY, DRAINING, READY]
    assert pool.shows is PoolPhase.READY
    assert pool.until(130.3, running=4, inflight=(3, 1, 0)) == []
    assert pool.until(130.5, running=4, inflight=(4, 0, 0)) == [Stop(1)]


def test_a_drain_of_one_member_waits_for_its_last_request_however_long_it_takes():
    pool = Pool(max=2, target=4).up(0, 1)
    pool.until(30.1, running=2, inflight=(1, 1))
    assert pool.members == [READY, DRAINING]
    assert pool.until(900, step=1, running=2, inflight=(1, 1)) == []
    assert pool.until(901, running=1, inflight=(1, 0)) == [Stop(1)]


def test_ordered_members_end_from_the_highest_number():
    pool = Pool(max=3, target=4, ordered=True).up(0, 1, 2)
    pool.until(30.1, running=2, inflight=(0, 1, 2))
    assert pool.members == [READY, READY, DRAINING]
    pool = Pool(max=2, ordered=True).up(0, 1)
    assert pool.until(31) == [Stop(1)]
    assert pool.members == [STOPPING, STOPPING]
    pool.tick(waiting=1)
    assert pool.tell(Stopped(1)) == [Stop(0)]
    assert pool.machine.wants_room == 0  # not while one ends
    pool.tell(Stopped(0))
    assert pool.tell(Room()) == [Start(0)]


def test_the_next_of_ordered_members_is_not_stopped_while_another_node_has_requests_again():
    pool = Pool(max=2, ordered=True).up(0, 1)
    assert pool.until(31) == [Stop(1)]
    pool.tick(others=Others(busy=True, drained=False))
    assert pool.tell(Stopped(1)) == []
    assert pool.tick() == [Stop(0)]


def test_never_below_min():
    pool = Pool(min=2, max=3).up(0, 1, 2)
    assert pool.until(31) == [Stop(2)]
    pool.tell(Stopped(2))
    assert pool.until(200) == []
    assert pool.members == [READY, READY, OFF]


def test_a_draining_member_is_taken_back_when_load_rises_or_the_last_other_one_dies():
    pool = Pool(max=2).up(0, 1)
    pool.until(30.1, running=1, inflight=(1, 1))
    assert pool.members == [READY, DRAINING]
    pool.tick(running=2, inflight=(1, 1))
    assert pool.members == [READY, DRAINING]
    pool.tick(running=3, inflight=(2, 1))
    assert pool.members == [READY, READY]
    pool.until(70.3, running=1, inflight=(1, 1))
    assert pool.members == [READY, DRAINING]
    pool.tell(Died(0, "killed"))
    assert pool.shows is PoolPhase.DRAINING
    pool.tick(waiting=1, running=1, inflight=(0, 1))
    assert pool.members == [OFF, READY]


def test_a_member_of_a_shared_pool_is_not_drained_while_another_node_is_busy():
    pool = Pool(max=2, target=4).up(0, 1)
    assert pool.until(100, Others(busy=True), running=1) == []
    assert pool.members == [READY, READY]
    assert pool.until(200, NOT_OWNER, running=1) == []
    assert pool.members == [READY, READY]


# ---- the configuration changes


def test_a_smaller_max_drains_the_members_beyond_it_and_starts_one_within_if_need_be():
    pool = Pool(max=3).up(2)
    pool.tick(1, running=1, inflight=(0, 0, 1))
    pool.machine.swap(Terms(max=1, idle_timeout_s=30.0), 1)
    assert pool.members == [OFF, OFF, DRAINING]
    pool.tick(2, waiting=1, running=1, inflight=(0, 0, 1))
    assert pool.tell(Room()) == [Start(0)]
    pool.tell(Started(0))
    assert pool.until(3, running=2, inflight=(1, 0, 1)) == []
    assert pool.until(4, running=1, inflight=(1, 0, 0)) == [Stop(2)]
    pool.tell(Stopped(2))
    assert pool.members == [READY]


def test_a_member_that_sleeps_beyond_a_smaller_max_ends_as_soon_as_it_may():
    pool = Pool(max=2, sleep_after_s=10.0).up(0, 1)
    pool.until(10.2)
    pool.tell(Slept(0))
    pool.tell(Slept(1))
    pool.tick(11, NOT_OWNER)
    assert pool.machine.swap(Terms(sleep_after_s=10.0), 11) == []
    assert pool.tick(12) == [Stop(1)]


def test_a_larger_min_and_max_start_more_and_other_times_hold_at_once():
    pool = Pool().up()
    pool.machine.swap(Terms(min=2, max=2, idle_timeout_s=5.0), 1)
    assert pool.machine.wants_room == 1
    assert pool.tell(Room()) == [Start(1)]
    pool.tell(Started(1))
    pool.machine.swap(Terms(max=2, idle_timeout_s=5.0), 1)
    assert pool.until(7) == [Stop(1), Stop(0)]


def test_preload_that_a_reload_brings_starts_one_and_one_that_was_there_does_not_again():
    pool = Pool()
    pool.machine.swap(Terms(preload=True), 1)
    assert pool.machine.wants_room == 1
    pool.up()
    pool.machine.swap(Terms(preload=True, target=3), 2)
    pool.tell(Died(0, "x"))
    assert pool.machine.wants_room == 0


def test_terms_come_from_the_configuration_and_the_target_from_max_concurrent():
    pool = WebhookPool(url="http://h", secret_env="S", max=3, sleep_after_s=2.0, preload=True)
    assert Terms.of(pool, 7, True) == Terms(
        max=3, target=7, sleep_after_s=2.0, ordered=True, preload=True, idle_timeout_s=300.0
    )
    assert Terms.of(WebhookPool(url="http://h", secret_env="S", target=5), 7, False).target == 5


# ---- when to look again


def test_the_machine_says_when_a_tick_is_worth_while_again():
    pool = Pool(sleep_after_s=10.0).up()
    made = []
    while pool.machine.due() < math.inf and len(made) < 2:
        made += [(effect, pool.now) for effect in pool.tick(pool.machine.due())]
        if pool.members == [DRAINING] and len(made) == 1:
            pool.tell(Slept(0))
    assert made == [(Sleep(0, 1), pytest.approx(10.12)), (Stop(0), 30.0)]
