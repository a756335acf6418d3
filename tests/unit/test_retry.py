"""The retry decision, over its whole table: what failed × which attempt × is another backend left × the budget."""

import itertools

import pytest

from penstock.gateway.retry import MAX_ATTEMPTS, Again, RetryBudget, after_fault, after_status
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault

NEVER_OPENED = {
    FaultKind.DNS_FAILED,
    FaultKind.CONNECT_FAILED,
    FaultKind.CONNECT_TIMEOUT,
    FaultKind.TLS_FAILED,
}
TABLE = list(
    itertools.product(
        FaultKind, (False, True), (False, True), range(1, MAX_ATTEMPTS + 2), (False, True), (False, True)
    )
)


def budget(rich: bool) -> RetryBudget:
    made = RetryBudget()
    made.tokens = 1.0 if rich else 0.99
    return made


@pytest.mark.parametrize(("kind", "reused", "got_bytes", "attempt", "others", "rich"), TABLE)
def test_only_what_the_backend_cannot_have_acted_on_is_sent_again(
    kind: FaultKind, reused: bool, got_bytes: bool, attempt: int, others: bool, rich: bool
) -> None:
    tokens = budget(rich)
    before = tokens.tokens
    fault = UpstreamFault(kind, reused=reused, got_bytes=got_bytes)
    decision = after_fault(fault, attempt, others, tokens)

    stale = kind is FaultKind.CLOSED and reused and not got_bytes
    if attempt >= MAX_ATTEMPTS:
        expected = Again.NO
    elif stale:
        expected = Again.ELSEWHERE if others else Again.SAME_FRESH
    elif kind in NEVER_OPENED and others and rich:
        expected = Again.ELSEWHERE
    else:
        expected = Again.NO
    assert decision is expected
    paid = expected is Again.ELSEWHERE and not stale
    assert tokens.tokens == before - paid, "a stale connection and a refusal cost nothing"


@pytest.mark.parametrize("kind", sorted(set(FaultKind) - NEVER_OPENED, key=lambda kind: kind.value))
def test_nothing_is_sent_again_once_a_byte_of_an_answer_came(kind: FaultKind) -> None:
    fault = UpstreamFault(kind, reused=True, got_bytes=True)
    assert after_fault(fault, 1, True, budget(True)) is Again.NO


@pytest.mark.parametrize(
    ("status", "attempt", "others", "rich"),
    list(
        itertools.product(
            (200, 400, 404, 429, 499, 500, 501, 502, 503, 504, 599),
            (1, 2, 3, 4),
            (False, True),
            (False, True),
        )
    ),
)
def test_only_502_and_503_are_tried_elsewhere(status: int, attempt: int, others: bool, rich: bool) -> None:
    decision = after_status(status, attempt, others, budget(rich))
    wanted = status in (502, 503) and attempt < MAX_ATTEMPTS and others and rich
    assert decision is (Again.ELSEWHERE if wanted else Again.NO)


def test_retries_in_an_outage_stay_at_a_fifth_of_requests() -> None:
    tokens = RetryBudget(share=0.2, burst=10)
    retries = 0
    for _ in range(10_000):
        tokens.deposit()
        retries += after_status(503, 1, True, tokens) is Again.ELSEWHERE
    assert retries <= 10_000 * 0.2 + 10


def test_a_quiet_time_saves_no_more_than_the_burst() -> None:
    tokens = RetryBudget(share=0.2, burst=10)
    for _ in range(1000):
        tokens.deposit()
    assert sum(tokens.withdraw() for _ in range(100)) == 10
