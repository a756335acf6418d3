"""Admission over two workers that share a segment: bounds, order, room in the queue, and nobody forgotten."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.errors import Fault, Kind

from ..support.doors import Bounds, Node, Request, finish

WORKERS = 2
LIMIT = 4
QUEUE = 5
TIMEOUT_S = 60.0
MODEL = Bounds(places=LIMIT, max_queue=QUEUE, queue_timeout_s=TIMEOUT_S)


@pytest.fixture(params=[0, 64], ids=["one tenant", "tenants"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    made = Node(keys=request.param)
    yield made
    made.close()


def test_places_are_given_up_to_the_limit_over_all_workers(node: Node) -> None:
    requests = [Request(node, n % WORKERS, MODEL) for n in range(LIMIT + 2)]
    assert [r.entered for r in requests] == [True] * LIMIT + [False] * 2
    assert node.tally.running(0) == LIMIT
    assert node.tally.queued(0) == 2
    for request in requests[:LIMIT]:
        request.leave()
        node.settle()
    node.poll()
    assert all(r.entered for r in requests)
    finish(node, requests)


def test_a_full_queue_refuses_at_once_and_says_how_deep_it_is(node: Node) -> None:
    requests = [Request(node, 0, MODEL) for _ in range(LIMIT + QUEUE + 1)]
    fault = requests[-1].fault
    assert fault is not None
    assert (fault.kind, fault.status) == (Kind.QUEUE_FULL, 429)
    assert fault.headers == (("x-queue-depth", str(QUEUE)),)
    assert fault.retry_after_s
    assert node.tally.queued(0) == QUEUE
    finish(node, requests)


class Life:
    queued_ns = 0


def test_refusals_in_a_row_are_one_line_of_the_log_a_second(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    requests = [Request(node, 0, MODEL) for _ in range(LIMIT + QUEUE)]
    door = node.doors[0]

    def refuse(times: int) -> None:
        for _ in range(times):
            with pytest.raises(Fault, match="full"):
                door.queue(MODEL, Life()).send(None)

    refuse(20)
    node.run(1.0)
    refuse(1)
    assert caplog.messages == ["queue_full model=m more=0", "queue_full model=m more=19"]
    finish(node, requests)


def test_a_worker_serves_its_own_arrivals_in_order_and_lets_nobody_pass(node: Node) -> None:
    inside = [Request(node, 1, MODEL) for _ in range(LIMIT)]
    first, second = Request(node, 0, MODEL), Request(node, 0, MODEL)
    inside.pop().leave()  # found when worker 0 looks, not yet known there
    third = Request(node, 0, MODEL)
    assert third.waiting
    node.poll()
    assert [r.entered for r in (first, second, third)] == [True, False, False]
    finish(node, [*inside, first, second, third])


def test_a_wait_that_takes_too_long_ends_in_504_with_its_count_given_back(node: Node) -> None:
    requests = [Request(node, 0, MODEL) for _ in range(LIMIT + 2)]
    node.jump(TIMEOUT_S + 1)
    assert [r.fault.kind for r in requests if r.fault] == [Kind.QUEUE_TIMEOUT] * 2
    assert node.tally.queued(0) == 0
    finish(node, requests)


def test_a_waiter_cancelled_in_the_tick_that_gave_it_a_place_hands_the_place_on(node: Node) -> None:
    inside = [Request(node, 0, MODEL) for _ in range(LIMIT)]
    first, second = Request(node, 0, MODEL), Request(node, 0, MODEL)
    inside.pop().leave()  # gives the place to the first, whose task has not run yet
    assert first.task is not None
    first.task.cancel()
    node.settle()
    assert first.task.cancelled()
    assert second.entered
    finish(node, [*inside, second])


def test_who_waits_has_the_places_of_a_new_configuration(node: Node) -> None:
    requests = [Request(node, 0, MODEL) for _ in range(LIMIT + 2)]
    for door in node.doors:
        door.swap([Bounds(places=LIMIT + 1, max_queue=QUEUE)])
    node.poll()
    assert [r.entered for r in requests] == [True] * (LIMIT + 1) + [False]
    finish(node, requests)


def test_models_do_not_wait_for_each_other(node: Node) -> None:
    other = Bounds(index=1, name="other", places=1)
    requests = [Request(node, 0, MODEL) for _ in range(LIMIT + 1)]
    requests.append(Request(node, 0, other))
    assert requests[-1].entered
    finish(node, requests)


class TwoWorkers(RuleBasedStateMachine):
    """Any interleaving of arrivals, leaves, cancels, polls and reservations that another worker takes back."""

    requests = Bundle("requests")
    keys = 16
    callers = (
        Caller("a"),
        Caller("b", weight=3.0),
        Caller("c", weight=0.5),
        Caller("a", priority=1),
        Caller("d", priority=-1),
    )

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(WORKERS, self.keys)
        self.all: list[Request] = []
        self.reserved: list[int] = []
        """Workers between counting themselves in and looking at the sum."""

    def teardown(self) -> None:
        for worker in self.reserved:
            self.node.rows[worker].add_running(0, -1)
        finish(self.node, self.all)
        self.node.close()

    def inside(self) -> int:
        return sum(r.entered and not r.left for r in self.all)

    @rule(target=requests, worker=st.integers(0, WORKERS - 1), who=st.integers(0, 4))
    def arrive(self, worker: int, who: int) -> Request:
        """A request comes: below limit - W it always gets in, a full queue alone refuses it."""
        before, others = self.inside(), len(self.reserved)
        waited = any(r.waiting for r in self.all)
        was_waiting = self.node.doors[worker].waiting
        queued = self.node.tally.queued(0)
        request = Request(self.node, worker, MODEL, self.callers[who])
        if before + others < LIMIT and not waited:
            assert request.entered, "never refused while the sum is below the limit"
        if before < LIMIT - WORKERS and not was_waiting:
            assert request.entered, "never refused below the limit minus the workers"
        if request.fault is not None:
            assert request.fault.kind is Kind.QUEUE_FULL
            assert queued >= QUEUE
        self.all.append(request)
        return request

    @rule(request=consumes(requests))
    def leave_or_give_up(self, request: Request) -> None:
        """Whoever is inside leaves, whoever waits is cancelled."""
        request.leave()
        self.node.settle()

    @rule(one=consumes(requests), other=consumes(requests))
    def leave_and_give_up_in_one_step(self, one: Request, other: Request) -> None:
        """A place is handed over and its new holder cancelled before anything runs."""
        if one.entered:
            one.leave()
        other.leave()
        self.node.settle()

    @rule(one=consumes(requests), other=consumes(requests))
    def give_up_and_leave_in_one_step(self, one: Request, other: Request) -> None:
        """A place is free before the task of whom it would be has heard that it is cancelled."""
        if one.waiting:
            one.leave()
        other.leave()
        self.node.settle()

    @precondition(lambda self: len(self.reserved) < WORKERS - 1)
    @rule()
    def another_worker_reserves(self) -> None:
        """Worker 1 has counted itself in and has not yet looked at the sum."""
        self.node.rows[1].add_running(0, 1)
        self.reserved.append(1)

    @precondition(lambda self: self.reserved)
    @rule()
    def it_takes_its_reservation_back(self) -> None:
        """It found the sum over the limit."""
        self.node.rows[self.reserved.pop()].add_running(0, -1)

    @rule(seconds=st.sampled_from([0.0, 0.0021, 0.02, 1.0, TIMEOUT_S + 1]))
    def time_passes(self, seconds: float) -> None:
        """Both workers poll and tick."""
        self.node.jump(seconds)

    @invariant()
    def no_more_than_the_limit_and_one_for_each_other_worker(self) -> None:
        """The contract's bound."""
        assert self.inside() <= LIMIT + WORKERS - 1

    @invariant()
    def counts_say_what_is(self) -> None:
        """Nothing is counted twice or forgotten."""
        counts, waiting = self.node.counts(), sum(r.waiting for r in self.all)
        assert counts["running"] == self.inside() + len(self.reserved)
        assert counts["queued"] == counts["waiting"] == waiting
        if self.keys:
            assert counts["shares running"] == self.inside()
            assert counts["shares queued"] == waiting
        assert waiting <= QUEUE + 64
        for door, wish in zip(self.node.doors, self.node.tally.wishes(0), strict=True):
            assert bool(door.waiting) == bool(wish)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Once both workers have looked nobody waits for a place that is free, nor is the queue too long."""
        if self.reserved or not any(r.waiting for r in self.all):
            return
        self.node.poll()
        waiting = sum(r.waiting for r in self.all)
        assert not waiting or self.inside() >= LIMIT


class TwoWorkersOneTenant(TwoWorkers):
    """As without keys: one tenant, no cells for shares."""

    keys = 0
    callers = (ANYONE,) * 5

    @invariant()
    def the_queue_is_never_too_long(self) -> None:
        """The bound of the queue is the node's."""
        assert self.node.tally.queued(0) <= QUEUE


for _machine in (TwoWorkers, TwoWorkersOneTenant):
    _machine.TestCase.settings = settings(
        max_examples=settings.default.max_examples // 2 or 1,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkersOneTenant = TwoWorkersOneTenant.TestCase
