"""Admission over two workers that share a segment: bounds, order, and nobody forgotten."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from penstock.cache.layout import Geometry
from penstock.cache.rows import Tally, TallyRow
from penstock.cache.segment import Segment, process_start
from penstock.gateway.admission import Admission
from penstock.gateway.errors import Fault, Kind

WORKERS = 2
LIMIT = 4
QUEUE = 5
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Bounds:
    index: int = 0
    name: str = "m"
    max_concurrent: int = LIMIT
    max_queue: int = QUEUE
    queue_timeout_s: float = TIMEOUT_S


MODEL = Bounds()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def segment() -> Segment:
    start = process_start(os.getpid())
    assert start is not None
    return Segment.create(
        None,
        Geometry(slots=WORKERS, backends=2, models=2, counter_bytes=8192),
        owner_pid=os.getpid(),
        owner_start=start,
    )


class Node:
    """Two workers' doors, and the requests before them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.segment = segment()
        self.tally = Tally(self.segment)
        self.rows = [TallyRow(self.segment, slot) for slot in range(WORKERS)]
        self.doors = [Admission(row, self.tally, loop=self.loop, clock=self.clock) for row in self.rows]

    def settle(self) -> None:
        """Let everything run that can."""
        for _ in range(5):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def close(self) -> None:
        self.loop.close()
        for row in (*self.rows, self.tally):
            for name in row.__slots__:
                delattr(row, name)
        self.segment.close()


class Request:
    """One that asks to enter: `entered`, still waiting, refused with a fault, or given up."""

    def __init__(self, node: Node, worker: int, model: Bounds = MODEL) -> None:
        self.worker = worker
        self.model = model
        self.door = node.doors[worker]
        self.task: asyncio.Task[None] | None = None
        self.inside = self.door.try_enter(model)
        if not self.inside:
            self.task = node.loop.create_task(self.door.wait(model))
            node.settle()

    @property
    def entered(self) -> bool:
        return self.inside or (
            self.task is not None
            and self.task.done()
            and not self.task.cancelled()
            and self.task.exception() is None
        )

    @property
    def fault(self) -> Fault | None:
        if self.task is None or not self.task.done() or self.task.cancelled():
            return None
        error = self.task.exception()
        assert error is None or isinstance(error, Fault)
        return error

    @property
    def waiting(self) -> bool:
        return self.task is not None and not self.task.done()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


def test_places_are_given_up_to_the_limit_over_all_workers(node: Node) -> None:
    requests = [Request(node, n % WORKERS) for n in range(LIMIT + 2)]
    assert [r.entered for r in requests] == [True] * LIMIT + [False] * 2
    assert node.tally.running(0) == LIMIT
    assert node.tally.queued(0) == 2
    for request in requests[:LIMIT]:
        request.door.leave(MODEL)
        node.settle()
    for door in node.doors:
        door.tick(node.clock.now)
    node.settle()
    assert all(r.entered for r in requests)
    for request in requests[LIMIT:]:
        request.door.leave(MODEL)
    assert (node.tally.running(0), node.tally.queued(0)) == (0, 0)


def test_a_full_queue_refuses_at_once_and_says_how_deep_it_is(node: Node) -> None:
    requests = [Request(node, 0) for _ in range(LIMIT + QUEUE + 1)]
    fault = requests[-1].fault
    assert fault is not None
    assert (fault.kind, fault.status) == (Kind.QUEUE_FULL, 429)
    assert fault.headers == (("x-queue-depth", str(QUEUE)),)
    assert fault.retry_after_s
    assert node.tally.queued(0) == QUEUE
    finish(node, requests)


def test_a_worker_serves_its_own_arrivals_in_order_and_lets_nobody_pass(node: Node) -> None:
    inside = [Request(node, 1) for _ in range(LIMIT)]
    first, second = Request(node, 0), Request(node, 0)
    inside.pop().door.leave(MODEL)  # found by the tick of worker 0, not yet known there
    third = Request(node, 0)
    assert third.waiting
    node.doors[0].tick(node.clock.now)
    node.settle()
    assert [r.entered for r in (first, second, third)] == [True, False, False]
    finish(node, [*inside, first, second, third])


def test_a_wait_that_takes_too_long_ends_in_504_with_its_count_given_back(node: Node) -> None:
    requests = [Request(node, 0) for _ in range(LIMIT + 2)]
    node.clock.now += TIMEOUT_S + 1
    for door in node.doors:
        door.tick(node.clock.now)
    node.settle()
    assert [r.fault.kind for r in requests if r.fault] == [Kind.QUEUE_TIMEOUT] * 2
    assert node.tally.queued(0) == 0
    finish(node, requests)


def test_a_waiter_cancelled_in_the_tick_that_gave_it_a_place_hands_the_place_on(node: Node) -> None:
    inside = [Request(node, 0) for _ in range(LIMIT)]
    first, second = Request(node, 0), Request(node, 0)
    inside.pop().door.leave(MODEL)  # gives the place to the first, whose task has not run yet
    assert first.task is not None
    first.task.cancel()
    node.settle()
    assert first.task.cancelled()
    assert second.entered
    finish(node, [*inside, second])


def test_models_do_not_wait_for_each_other(node: Node) -> None:
    other = Bounds(index=1, name="other", max_concurrent=1)
    requests = [Request(node, 0) for _ in range(LIMIT + 1)]
    requests.append(Request(node, 0, other))
    assert requests[-1].entered
    finish(node, requests)
    assert node.tally.running(1) == 0


def finish(node: Node, requests: list[Request]) -> None:
    """Everyone leaves; every count must be zero then."""
    for request in requests:
        if request.task is not None and not request.task.done():
            request.task.cancel()
    node.settle()
    for request in requests:
        if request.entered:
            request.door.leave(request.model)
    node.settle()
    assert (node.tally.running(0), node.tally.queued(0)) == (0, 0)
    assert [door.waiting for door in node.doors] == [0, 0]


class TwoWorkers(RuleBasedStateMachine):
    """Any interleaving of arrivals, leaves, cancels, ticks and reservations that another worker takes back."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.all: list[Request] = []
        self.left: set[Request] = set()
        self.reserved: list[int] = []
        """Workers between counting themselves in and looking at the sum."""

    def teardown(self) -> None:
        for worker in self.reserved:
            self.node.rows[worker].add_running(0, -1)
        finish(self.node, [r for r in self.all if r not in self.left])
        self.node.close()

    def inside(self) -> int:
        return sum(r.entered and r not in self.left for r in self.all)

    @rule(target=requests, worker=st.integers(0, WORKERS - 1))
    def arrive(self, worker: int) -> Request:
        """A request comes: below limit - W it always gets in, a full queue alone refuses it."""
        before, others = self.inside(), len(self.reserved)
        was_waiting = self.node.doors[worker].waiting
        queued = self.node.tally.queued(0)
        request = Request(self.node, worker)
        if before + others < LIMIT and not was_waiting:
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
        if request.entered:
            self.left.add(request)
            request.door.leave(MODEL)
        elif request.task is not None:
            request.task.cancel()
        self.node.settle()

    @rule(one=consumes(requests), other=consumes(requests))
    def leave_and_give_up_in_one_step(self, one: Request, other: Request) -> None:
        """A place is handed over and its new holder cancelled before anything runs."""
        if one.entered:
            self.left.add(one)
            one.door.leave(MODEL)
        if other.task is not None and not other.task.done():
            other.task.cancel()
        elif other.entered and other is not one:
            self.left.add(other)
            other.door.leave(MODEL)
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

    @rule(seconds=st.sampled_from([0.0, 0.02, 1.0, TIMEOUT_S + 1]))
    def time_passes(self, seconds: float) -> None:
        """Both workers tick."""
        self.node.clock.now += seconds
        for door in self.node.doors:
            door.tick(self.node.clock.now)
        self.node.settle()

    @invariant()
    def no_more_than_the_limit_and_one_for_each_other_worker(self) -> None:
        """The contract's bound."""
        assert self.inside() <= LIMIT + WORKERS - 1

    @invariant()
    def counts_say_what_is(self) -> None:
        """Nothing is counted twice or forgotten."""
        assert self.node.tally.running(0) == self.inside() + len(self.reserved)
        assert self.node.tally.queued(0) == sum(r.waiting for r in self.all)
        assert sum(door.waiting for door in self.node.doors) == sum(r.waiting for r in self.all)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """After a tick of both workers nobody waits for a place that is free."""
        if self.reserved or not any(r.waiting for r in self.all):
            return
        for door in self.node.doors:
            door.tick(self.node.clock.now)
        self.node.settle()
        waiting = any(r.waiting for r in self.all)
        assert not waiting or self.inside() >= LIMIT


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(
    max_examples=settings.default.max_examples,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
