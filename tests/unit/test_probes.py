"""Verdicts on backends."""

from penstock.cache.table import DOWN, UNKNOWN, UP
from penstock.gateway.config import Health
from penstock.workers.probes import Verdict


def _after(outcomes: str, health: Health) -> int:
    verdict = Verdict()
    for outcome in outcomes:
        verdict.note(outcome == "+", health)
    return verdict.health


def test_a_verdict_needs_as_many_in_a_row_as_configured() -> None:
    health = Health(rise=2, fall=3)
    assert _after("+", health) == UNKNOWN
    assert _after("++", health) == UP
    assert _after("++--", health) == UP
    assert _after("++---", health) == DOWN
    assert _after("++---+", health) == DOWN
    assert _after("++---++", health) == UP


def test_a_success_between_failures_starts_their_count_anew() -> None:
    assert _after("+-+-+-", Health(rise=1, fall=2)) == UP


def test_an_unknown_backend_stays_unknown_until_it_has_failed_often_enough() -> None:
    assert _after("-", Health(fall=2)) == UNKNOWN
    assert _after("--", Health(fall=2)) == DOWN
