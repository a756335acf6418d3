"""The rate algorithm alone: over any time at most burst + rate x time, exactly, and debts are carried over."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.limits.gcra import LONGEST_NS, MINUTE_NS, cost_ns, default_burst, room, used, wait_ns

RATES = st.integers(1, 1_000_000_000)
START = 5 * MINUTE_NS


@given(
    rate=RATES,
    burst=st.integers(1, 50),
    pauses=st.lists(st.integers(0, MINUTE_NS), min_size=1, max_size=60),
)
def test_at_most_the_burst_and_what_the_rate_allows_is_ever_admitted(
    rate: int, burst: int, pauses: list[int]
) -> None:
    one, most = cost_ns(1, rate), cost_ns(burst, rate)
    owed, admitted = 0, []
    for now in accumulate(pauses, initial=START):
        while not wait_ns(owed, now, one, most) and len(admitted) < 500:
            owed = used(owed, now, one)
            admitted.append(now)
    # between any two of them, those included
    for i, first in enumerate(admitted[:20]):
        for j in (i, (i + len(admitted)) // 2, len(admitted) - 1):
            if j >= i:
                assert (j - i + 1) * one <= most + (admitted[j] - first)


@given(rate=RATES, burst=st.integers(1, 100), ahead=st.integers(-MINUTE_NS, MINUTE_NS), n=st.integers(1, 300))
def test_who_waits_as_told_is_admitted_and_not_earlier(rate: int, burst: int, ahead: int, n: int) -> None:
    owed, cost, most = START + ahead, cost_ns(n, rate), cost_ns(burst, rate)
    wait = wait_ns(owed, START, cost, most)
    assert wait_ns(owed, START + wait, cost, most) == 0
    if wait:
        assert wait_ns(owed, START + wait - 1, cost, most) == 1


@given(rate=RATES, burst=st.integers(1, 1000), ahead=st.integers(-MINUTE_NS, MINUTE_NS))
def test_what_there_is_room_for_fits_and_no_more(rate: int, burst: int, ahead: int) -> None:
    owed, most = START + ahead, cost_ns(burst, rate)
    n = room(owed, START, most, rate)
    left = most - max(0, ahead)
    assert n == 0 or cost_ns(n, rate) <= left
    assert left <= 0 or cost_ns(n + 1, rate) > left


@given(rate=RATES, taken=st.integers(0, 10_000), spent=st.integers(0, 10_000))
def test_what_was_taken_and_not_spent_is_given_back_to_the_nanosecond(
    rate: int, taken: int, spent: int
) -> None:
    owed = used(used(START, START, cost_ns(taken, rate)), START, -cost_ns(taken, rate))
    assert owed == START
    assert used(owed, START, cost_ns(spent, rate)) - START == cost_ns(spent, rate)


def test_a_debt_is_waited_for_and_not_forgiven() -> None:
    one, most = cost_ns(1, 60), cost_ns(1, 60)
    owed = used(0, START, 10 * one)
    assert wait_ns(owed, START, one, most) == 10 * one
    assert wait_ns(owed, START + 9 * one, one, most) == one


def test_what_costs_more_than_a_burst_is_admitted_when_nothing_is_owed() -> None:
    most = cost_ns(5, 600)
    assert wait_ns(START, START, cost_ns(100, 600), most) == 0
    assert wait_ns(START + 1, START, cost_ns(100, 600), most) == 1


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (199, 1), (600, 3), (60_000, 300)])
def test_half_a_percent_may_come_at_once(rate: int, burst: int) -> None:
    assert default_burst(rate) == burst


@given(rate=RATES, n=st.integers(1, 1 << 80), nodes=st.integers(1, 1 << 20), again=st.integers(1, 5))
def test_whatever_was_used_the_time_stays_within_a_cell(rate: int, n: int, nodes: int, again: int) -> None:
    owed = START
    for _ in range(again):
        owed = used(owed, START, cost_ns(n, rate) * nodes)
    assert owed <= START + LONGEST_NS < 1 << 63
