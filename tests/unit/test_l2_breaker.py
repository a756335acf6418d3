"""The breaker of the second tier: a pure machine, told the time."""

from penstock.cache.remote.breaker import CALM_S, FAILING_S, FAILURES, FIRST_DELAY_S, LAST_DELAY_S, Breaker


def _opened(breaker: Breaker, now_s: float) -> bool:
    return any(breaker.failed(now_s + FAILING_S * i / (FAILURES - 1)) for i in range(FAILURES))


def test_it_opens_when_failures_go_on_for_a_while() -> None:
    breaker = Breaker()
    assert _opened(breaker, 100.0)
    assert breaker.open


def test_many_failures_at_one_moment_do_not_open_it() -> None:
    breaker = Breaker()
    assert not any(breaker.failed(100.0) for _ in range(1000))
    assert breaker.failed(100.0 + FAILING_S)


def test_few_failures_do_not_open_it_however_long_they_take() -> None:
    breaker = Breaker()
    assert not any(breaker.failed(100.0 + 10 * i) for i in range(FAILURES - 1))


def test_one_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker()
    for i in range(100):
        assert not breaker.failed(100.0 + i)
        if i % (FAILURES - 1) == FAILURES - 2:
            breaker.succeeded()


def test_only_a_probe_closes_it() -> None:
    breaker = Breaker()
    _opened(breaker, 100.0)
    breaker.succeeded()  # a reply that was on its way
    assert breaker.open
    assert not breaker.failed(200.0), "it is open already"
    assert not breaker.probed(False, 201.0)
    assert breaker.probed(True, 202.0)
    assert not breaker.open
    assert not breaker.probed(True, 203.0), "it is closed already"


def test_probes_become_rarer_up_to_a_bound() -> None:
    breaker = Breaker()
    _opened(breaker, 100.0)
    delays = [breaker.delay_s]
    for _ in range(10):
        breaker.probed(False, 101.0)
        delays.append(breaker.delay_s)
    assert delays[0] == FIRST_DELAY_S
    assert delays == sorted(delays)
    assert delays[-1] == LAST_DELAY_S


def test_closed_too_early_it_waits_longer_and_after_a_calm_time_as_at_first() -> None:
    breaker = Breaker()
    _opened(breaker, 100.0)
    breaker.probed(True, 101.0)
    _opened(breaker, 102.0)
    assert breaker.delay_s == 2 * FIRST_DELAY_S
    breaker.probed(True, 103.0)
    _opened(breaker, 103.0 + CALM_S)
    assert breaker.delay_s == FIRST_DELAY_S


def test_it_can_be_opened_at_once() -> None:
    breaker = Breaker()
    assert breaker.trip(1.0)
    assert not breaker.trip(2.0)
    assert breaker.open
