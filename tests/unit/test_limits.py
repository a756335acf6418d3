"""Limits of keys over several workers: exact in the long run, whoever asks, dies or is stopped."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cache.gates import Gates
from penstock.cache.outcome import Outcome
from penstock.cache.rows import KEY_RUNNING, KEY_TOKENS, Tally, TallyRow
from penstock.cache.segment import Segment, process_start
from penstock.cache.slots import claim, sweep
from penstock.gateway.config import MAX_BACKENDS
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.life import Life
from penstock.gateway.limits.gcra import MINUTE_NS, cost_ns
from penstock.gateway.limits.grant import Grant
from penstock.gateway.limits.limits import Limits
from penstock.gateway.limits.words import duration
from penstock.gateway.parse import Parser, Request
from penstock.gateway.raw import RawRequest

from .forked import Child, linger
from .limiting import MS, START_NS, Cells, Clock, Counted, asked, key

Say = Callable[[bytes], object]
PAID = Outcome.MISS.value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cells(clock: Clock) -> Iterator[Cells]:
    made = Cells(clock)
    yield made
    made.close()


def request(max_tokens: int = 100, path: str = "/v1/completions") -> Request:
    body = json.dumps({"model": "m", "prompt": "x", "input": "x", "max_tokens": max_tokens}).encode()
    raw = RawRequest("POST", path, "", "", "application/json", "id", body)
    return Parser().parse(ENDPOINTS[path], raw)


def reserved(limits: Limits, caller: object, max_tokens: int = 100) -> Grant | Fault:
    grant = asked(limits, caller)  # type: ignore[arg-type]
    if isinstance(grant, Grant):
        try:
            grant.reserve(request(max_tokens))
        except Fault as fault:
            grant.end(Life())
            return fault
    return grant


def ended(grant: Grant, total: int, status: int = 200, cache: str = PAID) -> None:
    life = Life()
    life.cache, life.status = cache, status
    grant.fields([], json.dumps({"usage": {"total_tokens": total}}).encode())
    grant.end(life)


def stripe(cells: Cells, row: int = 0) -> list[int]:
    seen: list[list[int]] = []

    def look(state: list[int]) -> list[int]:
        seen.append(state)
        return state

    assert Gates(cells.segment).update(MAX_BACKENDS + row, look)
    return seen[0]


# ---- requests


@pytest.mark.parametrize("rpm", [600, 7_777, 60_000])
def test_a_minute_admits_the_limit_within_one_percent_through_four_workers(
    cells: Cells, clock: Clock, rpm: int
) -> None:
    workers = [cells.worker(i) for i in range(4)]
    caller = key(rpm=rpm)
    admitted = 0
    for _ in range(6_000):
        for worker in workers:
            for _ in range(8):
                if isinstance(asked(worker, caller), Fault):
                    break
                admitted += 1
        clock.now += 10 * MS
    assert abs(admitted - rpm) <= rpm / 100


def test_four_processes_admit_the_limit_within_one_percent(cells: Cells, clock: Clock) -> None:
    """The clock lies in memory that all share; it is moved when each of them has asked."""
    shared = mmap.mmap(-1, 4096)
    view = memoryview(shared).cast("Q")
    view[0] = START_NS
    caller = key(rpm=600)

    def body(slot: int) -> Callable[[Say], None]:
        def run(say: Say) -> None:
            segment = Segment.attach(cells.segment.fd)
            limits = Limits(
                *(segment, TallyRow(segment, slot), Tally(segment), Counted()),
                workers=4,
                clock_ns=lambda: view[0],
            )
            admitted, seen = 0, 0
            while (now := view[0]) < START_NS + MINUTE_NS:
                if now == seen:
                    os.sched_yield()
                    continue
                for _ in range(3):
                    admitted += isinstance(asked(limits, caller), Grant)
                view[1 + slot] = seen = now
            say(b"%d" % admitted)

        return run

    with Child(body(0)) as a, Child(body(1)) as b, Child(body(2)) as c, Child(body(3)) as d:
        while (now := view[0]) < START_NS + MINUTE_NS:
            if all(view[i] == now for i in range(1, 5)):
                view[0] = now + 40 * MS
            else:
                os.sched_yield()
        counts = [int(child.hear()) for child in (a, b, c, d)]
    assert 594 <= sum(counts) <= 606, counts


def test_who_waits_as_told_is_admitted_and_not_a_millisecond_earlier(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(rpm=60)
    assert isinstance(asked(worker, caller), Grant)
    fault = asked(worker, caller)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.status, fault.retry_after_s) == (Kind.RATE_LIMITED, 429, 1.0)
    clock.now += 999 * MS
    assert isinstance(asked(worker, caller), Fault)
    clock.now += MS
    assert isinstance(asked(cells.worker(1), caller), Grant)


def test_a_refusal_that_is_repeated_says_how_long_from_now(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(rpm=60)
    asked(worker, caller)
    waits = []
    for _ in range(3):
        fault = asked(worker, caller)
        assert isinstance(fault, Fault)
        waits.append(fault.retry_after_s)
        clock.now += 10 * MS
    assert waits == [1.0, 0.99, 0.98]


def test_a_flood_of_refusals_leaves_the_cells_alone(
    cells: Cells, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, caller = cells.worker(0), key(rpm=60)
    asked(worker, caller)
    visits = counted_visits(monkeypatch)
    for _ in range(1000):
        assert isinstance(asked(worker, caller), Fault)
    assert visits == [MAX_BACKENDS]


def test_many_requests_share_one_visit_where_the_rate_is_high(
    cells: Cells, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, caller = cells.worker(0), key(rpm=60_000, tpm=600_000_000)
    visits = counted_visits(monkeypatch)
    for _ in range(1000):
        grant = reserved(worker, caller)
        assert isinstance(grant, Grant)
        ended(grant, 50)
        clock.now += MS
    assert len(visits) < 120


def counted_visits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    visits: list[int] = []
    update = Gates.update

    def counted(self: Gates, at: int, fn: Callable[[list[int]], list[int]]) -> bool:
        visits.append(at)
        return update(self, at, fn)

    monkeypatch.setattr(Gates, "update", counted)
    return visits


def test_while_the_cells_are_locked_a_worker_admits_its_share_and_owes_it(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(rpm=600, tpm=60_000)
    stopped = Segment.attach(cells.segment.fd)
    assert stopped.gate_locks.try_lock(MAX_BACKENDS)
    admitted = 0
    for _ in range(1000):
        grant = reserved(worker, caller, max_tokens=1)
        if isinstance(grant, Grant):
            admitted += 1
            ended(grant, 100)
        clock.now += 10 * MS
    assert admitted in (25, 26)  # ten seconds of a quarter of 600 a minute
    stopped.gate_locks.unlock(MAX_BACKENDS)
    stopped.close()
    assert isinstance(asked(worker, caller), Fault)  # the debt is told first
    worker.tick()
    state = stripe(cells)
    assert state[1] == cost_ns(admitted, 600)
    assert state[3] == cost_ns(admitted * 100, 60_000)


def test_a_burst_may_be_set(cells: Cells) -> None:
    worker = cells.worker(0)
    for row, (limits, most) in enumerate(
        [({"rpm": 60}, 1), ({"rpm": 60, "burst": 20}, 20), ({"rpm": 2000}, 10)]
    ):
        caller = key(row, **limits)
        assert sum(isinstance(asked(worker, caller), Grant) for _ in range(50)) == most


def test_a_row_that_another_key_gets_begins_anew(cells: Cells) -> None:
    worker, other = cells.worker(0), cells.worker(1)
    assert isinstance(asked(worker, key(rpm=1)), Grant)
    assert isinstance(asked(other, key(rpm=1)), Fault)
    caller = key(rpm=1)
    caller.id = "another"
    assert isinstance(asked(other, caller), Grant)


def test_a_new_limit_goes_for_a_key_at_once(cells: Cells, clock: Clock) -> None:
    worker = cells.worker(0)
    assert isinstance(asked(worker, key(rpm=1)), Grant)
    assert isinstance(asked(worker, key(rpm=1)), Fault)
    clock.now += 2 * 60_000 * MS
    caller = key(rpm=60, burst=5)
    assert sum(isinstance(asked(worker, caller), Grant) for _ in range(9)) == 5


def test_apart_from_others_a_node_keeps_to_its_share(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(rpm=600)
    cells.segment.publish_limit_nodes(3, apart=True)
    admitted = 0
    for _ in range(6_000):
        admitted += isinstance(asked(worker, caller), Grant)
        clock.now += 10 * MS
    assert 198 <= admitted <= 202
    cells.segment.publish_limit_nodes(3, apart=False)
    for _ in range(6_000):
        admitted += isinstance(asked(worker, caller), Grant)
        clock.now += 10 * MS
    assert 794 <= admitted <= 806


# ---- requests at a time


def test_at_most_the_limit_runs_at_a_time_and_a_place_comes_back(cells: Cells) -> None:
    workers = [cells.worker(i) for i in range(4)]
    caller = key(concurrent=10)
    grants = [g for _ in range(20) for w in workers if isinstance(g := asked(w, caller), Grant)]
    assert len(grants) == 10
    assert cells.tally.of_key(KEY_RUNNING, 0) == 10
    grants.pop().end(Life())
    assert isinstance(asked(workers[2], caller), Grant)
    assert isinstance(asked(workers[2], caller), Fault)


def test_who_is_over_the_rate_takes_no_place(cells: Cells) -> None:
    worker, caller = cells.worker(0), key(rpm=1, concurrent=5)
    asked(worker, caller)
    assert isinstance(asked(worker, caller), Fault)
    assert cells.tally.of_key(KEY_RUNNING, 0) == 1


# ---- tokens


@settings(max_examples=60, deadline=None)
@given(
    tpm=st.sampled_from([60_000, 1_000_000, 60_000_000]),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 400), st.integers(0, 900), st.integers(0, 500)),
        max_size=60,
    ),
)
def test_tokens_settle_to_the_true_usage(tpm: int, steps: list[tuple[int, int, int, int]]) -> None:
    clock = Clock()
    cells = Cells(clock)
    workers = [cells.worker(i) for i in range(4)]
    caller = key(tpm=tpm)
    spent, running = 0, []
    for at, estimate, usage, pause in steps:
        grant = reserved(workers[at], caller, estimate)
        if isinstance(grant, Grant):
            running.append((grant, usage))
        if len(running) > 5:
            grant, usage = running.pop(0)
            ended(grant, usage)
            spent += usage
        clock.now += pause * MS
    for grant, usage in running:
        ended(grant, usage)
        spent += usage
    state = stripe(cells)
    free = [w._purses[0].tokens if 0 in w._purses else 0 for w in workers]
    grant_tokens = min(tpm // 3000, tpm // 1600)
    assert all(0 <= n <= 2 * grant_tokens for n in free)
    charged = state[3] if state[3] < 1 << 63 else state[3] - (1 << 64)
    exact = cost_ns(spent + sum(free), tpm)
    assert abs(charged - exact) <= 4 * len(steps) + 8  # each charge is rounded down
    assert state[4] >= sum(free)
    cells.close()


def test_a_minute_spends_the_limit_within_one_percent(cells: Cells, clock: Clock) -> None:
    """Requests of 40 tokens that reserve 126 and take 300 ms, through four workers."""
    workers = [cells.worker(i) for i in range(4)]
    caller = key(tpm=60_000)
    running: list[tuple[int, Grant]] = []
    spent = 0
    for step in range(13_000):
        if step == 1000:
            spent = 0  # by now as much is under way as in any minute
        for worker in workers:
            grant = reserved(worker, caller)
            if isinstance(grant, Grant):
                running.append((clock.now + 300 * MS, grant))
        while running and running[0][0] <= clock.now:
            ended(running.pop(0)[1], 40)
            spent += 40
        clock.now += 5 * MS
    assert abs(spent - 60_000) <= 600


@pytest.mark.parametrize(
    ("status", "cache", "spent"),
    [
        (200, Outcome.MISS.value, 70),
        (200, Outcome.BYPASS.value, 70),
        (200, Outcome.COALESCED.value, 0),
        (200, Outcome.HIT_L1.value, 0),
        (200, Outcome.HIT_L2.value, 0),
        (502, Outcome.MISS.value, 0),
        (429, "", 0),
    ],
)
def test_who_asks_a_backend_pays_and_for_answers_alone(
    cells: Cells, status: int, cache: str, spent: int
) -> None:
    worker, caller = cells.worker(0), key(tpm=60_000)
    grant = reserved(worker, caller)
    assert isinstance(grant, Grant)
    assert stripe(cells)[4] > 100
    ended(grant, 70, status, cache)
    worker._purses[0].visit(START_NS, 1)
    free = worker._purses[0].tokens
    assert stripe(cells)[3] == cost_ns(spent + free, 60_000)


def test_a_request_over_the_whole_minute_is_served_when_nothing_is_owed(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(tpm=1_000)
    grant = reserved(worker, caller, 50_000)
    assert isinstance(grant, Grant)
    assert isinstance(fault := reserved(worker, caller, 1), Fault)
    assert fault.retry_after_s is not None
    assert 59 < fault.retry_after_s <= 60
    ended(grant, 100)
    clock.now += 25 * MS
    assert isinstance(fault := reserved(worker, caller, 1), Fault)
    assert fault.retry_after_s is not None
    assert 5 < fault.retry_after_s < 6  # a hundred tokens take six seconds, a burst of five is free


def test_a_killed_workers_reservations_come_back(cells: Cells, clock: Clock) -> None:
    caller = key(rpm=6000, tpm=60_000, concurrent=2)

    def body(say: Say) -> None:
        segment = Segment.attach(cells.segment.fd)
        start = process_start(os.getpid())
        assert start is not None
        claim(segment, 1, os.getpid(), start)
        limits = Limits(
            *(segment, TallyRow(segment, 1), Tally(segment), Counted()), workers=4, clock_ns=clock
        )
        grants = [reserved(limits, caller, 59_000)]
        say(b"%d" % isinstance(grants[0], Grant))
        linger()

    worker = cells.worker(0)
    with Child(body) as child:
        assert child.hear() == b"1"
        assert cells.tally.of_key(KEY_TOKENS, 0) > 59_000
        assert isinstance(fault := reserved(worker, caller, 10), Fault)
        assert fault.retry_after_s is not None
        assert fault.retry_after_s > 50
        child.kill()
    sweep(cells.segment)
    clock.now += 20 * MS  # as long as a refusal is believed
    grant = reserved(worker, caller, 10)
    assert isinstance(grant, Grant)
    assert cells.tally.of_key(KEY_RUNNING, 0) == 1
    ended(grant, 10)
    worker._purses[0].visit(clock.now, 1)
    state = stripe(cells)
    free = worker._purses[0].tokens
    assert abs(state[3] - cost_ns(10 + free, 60_000)) < 8
    assert state[4] == free


def test_reservations_of_the_living_are_never_given_back(cells: Cells, clock: Clock) -> None:
    workers = [cells.worker(i) for i in range(4)]
    caller = key(tpm=60_000)
    held = []
    for i in range(200):
        grant = reserved(workers[i % 4], caller, 30)
        if isinstance(grant, Grant):
            held.append(grant)
        if len(held) > 8:
            ended(held.pop(0), 25)
        clock.now += 13 * MS
        assert cells.tally.of_key(KEY_TOKENS, 0) == stripe(cells)[4]


def test_rows_never_add_up_to_less_than_the_cells(
    cells: Cells, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment of a worker's visit another looks; or it would give back what is in use."""
    workers = [cells.worker(i) for i in range(2)]
    caller = key(tpm=300_000)
    update = Gates.update
    looks = 0

    def looked(self: Gates, at: int, fn: Callable[[list[int]], list[int]]) -> bool:
        nonlocal looks

        def then(state: list[int]) -> list[int]:
            assert cells.tally.of_key(KEY_TOKENS, 0) >= state[4]
            return fn(state)

        done = update(self, at, then)
        looks += update(self, at, lambda state: [*state] if enough(state) else [])
        return done

    def enough(state: list[int]) -> bool:
        return cells.tally.of_key(KEY_TOKENS, 0) >= state[4]

    monkeypatch.setattr(Gates, "update", looked)
    for i in range(60):
        grant = reserved(workers[i % 2], caller, 50 + i)
        if isinstance(grant, Grant):
            ended(grant, 3 * i)
        clock.now += 7 * MS
    assert looks > 20


# ---- what is told


def test_answers_say_where_the_key_stands(cells: Cells, clock: Clock) -> None:
    worker, caller = cells.worker(0), key(rpm=600, tpm=60_000)
    grant = reserved(worker, caller, 89)
    assert isinstance(grant, Grant)
    told = grant.fields([("content-type", "x"), ("x-ratelimit-limit-requests", "of its server")])
    purse = worker._purses[0]
    assert told == [
        ("content-type", "x"),
        ("x-ratelimit-limit-requests", "600"),
        ("x-ratelimit-remaining-requests", "2"),
        ("x-ratelimit-reset-requests", "100ms"),
        ("x-ratelimit-limit-tokens", "60000"),
        ("x-ratelimit-remaining-tokens", str(300 - purse.reserved)),
        ("x-ratelimit-reset-tokens", duration(cost_ns(purse.reserved + purse.tokens, 60_000))),
    ]
    assert purse.reserved > 89


def test_who_asks_one_after_another_is_told_what_is_left(cells: Cells, clock: Clock) -> None:
    """The clock stands, and no request but the first visits the cells."""
    worker, caller = cells.worker(0), key(rpm=600_000, concurrent=9)
    said = []
    for _ in range(4):
        grant = asked(worker, caller)
        assert isinstance(grant, Grant)
        said.append(int(dict(grant.fields([]))["x-ratelimit-remaining-requests"]))
        grant.end(Life())
    assert said == [said[0] - n for n in range(4)]

    first, second = asked(worker, caller), asked(worker, caller)
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    told = first.fields([])
    third = asked(worker, caller)
    assert second.fields([]) == told  # they go out together
    clock.now += 2 * MS
    assert isinstance(third, Grant)
    assert third.fields([]) != told


def test_a_refusal_names_the_limit_in_openais_words(cells: Cells) -> None:
    worker = cells.worker(0)
    asked(worker, key(rpm=1))
    fault = asked(worker, key(rpm=1))
    assert isinstance(fault, Fault)
    assert fault.kind.value == "rate_limit_exceeded"
    assert fault.message == (
        "Rate limit reached for requests per minute (RPM): Limit 1. Please try again in 60.000s."
    )
    assert dict(fault.headers)["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (17 * MS, "17ms"),
        (1204 * MS, "1.204s"),
        (6000 * MS, "6s"),
        (360_000 * MS, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(ns: int, text: str) -> None:
    assert duration(ns) == text
