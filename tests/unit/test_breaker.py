"""A breaker: failures in a row open it, one probe at a time tries again, and only the probe's word counts then."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.cache.gates import Gates
from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment, process_start
from penstock.gateway.breaker import CLOSED, HALF_OPEN, OPEN, State
from penstock.gateway.breakers import Breakers

LIMIT, OPEN_NS = 3, 5_000


def fresh() -> State:
    return State([0] * 8, identity=7)


def opened(now_ns: int = 0) -> State:
    state = fresh()
    for _ in range(LIMIT):
        state.failed(0, now_ns, LIMIT, OPEN_NS)
    return state


def test_so_many_failures_in_a_row_open_it_and_one_less_does_not():
    state = fresh()
    for _ in range(LIMIT - 1):
        state.failed(0, 0, LIMIT, OPEN_NS)
    assert state.phase == CLOSED
    state.failed(0, 0, LIMIT, OPEN_NS)
    assert (state.phase, state.until_ns) == (OPEN, OPEN_NS)


def test_a_success_between_failures_starts_the_count_anew():
    state = fresh()
    for _ in range(4 * LIMIT):
        state.failed(0, 0, LIMIT, OPEN_NS)
        state.succeeded(0, 0)
    assert state.phase == CLOSED


def test_one_probe_goes_when_it_is_due_and_no_second_one():
    state = opened()
    assert state.claim(OPEN_NS - 1, OPEN_NS) == 0
    assert state.claim(OPEN_NS, OPEN_NS) > 0
    assert state.claim(OPEN_NS, OPEN_NS) == 0
    assert state.phase == HALF_OPEN


def test_the_probe_closes_it_or_opens_it_anew():
    state = opened()
    token = state.claim(OPEN_NS, OPEN_NS)
    state.failed(token, OPEN_NS, LIMIT, OPEN_NS)
    assert (state.phase, state.until_ns) == (OPEN, 2 * OPEN_NS)
    token = state.claim(2 * OPEN_NS, OPEN_NS)
    state.succeeded(token, 2 * OPEN_NS)
    assert (state.phase, state.failures, state.closed_ns) == (CLOSED, 0, 2 * OPEN_NS)


def test_what_began_before_it_opened_says_nothing_of_the_time_since():
    state = opened()
    state.succeeded(0, 1)
    assert state.phase == OPEN
    token = state.claim(OPEN_NS, OPEN_NS)
    state.failed(0, OPEN_NS, LIMIT, OPEN_NS)
    state.succeeded(0, OPEN_NS)
    state.succeeded(token - 1, OPEN_NS)
    assert state.phase == HALF_OPEN


def test_a_lost_probe_is_given_to_another_and_its_late_word_does_not_count():
    state = opened()
    lost = state.claim(OPEN_NS, OPEN_NS)
    again = state.claim(2 * OPEN_NS, OPEN_NS)
    assert again != lost
    assert again
    state.failed(lost, 2 * OPEN_NS, LIMIT, OPEN_NS)
    assert state.phase == HALF_OPEN


def test_a_slow_probe_closes_it_even_when_the_next_has_gone():
    state = opened()
    slow = state.claim(OPEN_NS, OPEN_NS)
    state.claim(2 * OPEN_NS, OPEN_NS)
    state.succeeded(slow, 2 * OPEN_NS + 1)
    assert state.phase == CLOSED
    for _ in range(LIMIT):
        state.failed(0, 3 * OPEN_NS, LIMIT, OPEN_NS)
    state.claim(4 * OPEN_NS, OPEN_NS)
    state.succeeded(slow, 4 * OPEN_NS)
    assert state.phase == HALF_OPEN, "the probe of an earlier time says nothing of this one"


def test_the_cells_of_another_backend_are_as_good_as_none():
    state = State(opened().cells(), identity=8)
    assert (state.phase, state.failures) == (CLOSED, 0)
    assert State(opened().cells(), identity=7).phase == OPEN


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens: at most one probe is believed, and never one before its time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = fresh()
        self.now = 0
        self.tokens: list[int] = [0]
        #: the probes since it opened
        self.since: list[int] = []

    @rule(by=st.integers(1, OPEN_NS))
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(data=st.data())
    def fails(self, data: st.DataObject) -> None:
        before = self.state.phase
        self.state.failed(data.draw(st.sampled_from(self.tokens)), self.now, LIMIT, OPEN_NS)
        if before == CLOSED:
            self.since.clear()

    @rule(data=st.data())
    def goes_well(self, data: st.DataObject) -> None:
        before, token = self.state.phase, data.draw(st.sampled_from(self.tokens))
        self.state.succeeded(token, self.now)
        if before != CLOSED and self.state.phase == CLOSED:
            assert before == HALF_OPEN
            assert token in self.since

    @precondition(lambda self: self.state.phase != CLOSED)
    @rule()
    def claims(self) -> None:
        due = self.now >= self.state.until_ns
        token = self.state.claim(self.now, OPEN_NS)
        assert bool(token) is due
        if token:
            assert token not in self.tokens
            self.tokens.append(token)
            self.since.append(token)

    @invariant()
    def cells_keep_it(self) -> None:
        copy = State(self.state.cells(), 7)
        assert copy.cells() == self.state.cells()
        assert (self.state.phase == CLOSED) is (self.state.failures < LIMIT)


TestAnyHistory = AnyHistory.TestCase


class Backend:
    """What the breakers see of a backend."""

    index, name, identity, identity64 = 3, "b", "m\nb", 7

    def __init__(self) -> None:
        self.shut = self.doubted = False
        self.probe_ns = self.breaker_stamp = 0
        self.recoveries = 0

    def recovered(self, closed_ns: int) -> None:
        self.recoveries += 1


@pytest.fixture
def segment() -> Iterator[Segment]:
    start = process_start(os.getpid())
    assert start is not None
    made = Segment.create(
        None,
        Geometry(slots=2, backends=8, models=1, counter_bytes=1024, gates=8),
        owner_pid=os.getpid(),
        owner_start=start,
    )
    yield made
    made.close()


def test_workers_count_into_one_breaker_and_one_of_them_probes(segment: Segment):
    now = [0]
    other = Segment.attach(segment.fd)
    mine, theirs = (Breakers(Gates(each), lambda: now[0], LIMIT, OPEN_NS / 1e9) for each in (segment, other))
    here, there = Backend(), Backend()
    mine.failed(here, 0, "500")
    theirs.failed(there, 0, "500")
    assert not here.shut
    assert not there.shut
    mine.failed(here, 0, "500")
    assert here.shut
    theirs.tick([there])
    assert there.shut
    assert there.probe_ns == OPEN_NS
    assert theirs.probe(there) == 0
    now[0] = OPEN_NS
    tokens = [theirs.probe(there), mine.probe(here), theirs.probe(there)]
    assert [bool(token) for token in tokens] == [True, False, False]
    theirs.succeeded(there, tokens[0])
    assert not there.shut
    assert there.recoveries == 1
    assert here.shut
    mine.tick([here])
    assert not here.shut
    assert here.recoveries == 1
    other.close()


def test_a_worker_that_hears_of_nothing_new_reads_nothing(segment: Segment):
    gates = Gates(segment)
    reads = []

    class Counted:
        stamp, update = gates.stamp, gates.update

        @staticmethod
        def read(stripe: int) -> list[int] | None:
            reads.append(stripe)
            return gates.read(stripe)

    breakers = Breakers(Counted(), lambda: 0, LIMIT, 1.0)
    backend = Backend()
    breakers.tick([backend])
    breakers.failed(backend, 0, "500")
    breakers.tick([backend])
    breakers.tick([backend])
    assert reads == [3]
