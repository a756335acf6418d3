"""When a dead process is started again."""

from penstock.workers.backoff import LOOP_AFTER, MAX_DELAY_S, Backoff


def test_a_few_deaths_are_answered_at_once() -> None:
    backoff = Backoff()
    assert [backoff.died(now, was_ready=True) for now in (0.0, 0.1, 0.2)] == [0.0, 0.0, 0.0]


def test_further_deaths_wait_longer_and_longer_up_to_a_bound() -> None:
    backoff = Backoff()
    delays = [backoff.died(0.0, was_ready=True) for _ in range(20)]
    assert delays == sorted(delays)
    assert delays[3] == 0.1
    assert delays[-1] == MAX_DELAY_S


def test_deaths_long_ago_are_forgotten() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.died(0.0, was_ready=True)
    assert backoff.died(60.0, was_ready=True) == 0.0


def test_a_process_that_was_ready_is_never_a_crash_loop() -> None:
    backoff = Backoff()
    for now in range(100):
        backoff.died(float(now) / 100, was_ready=True)
    assert not backoff.crash_loop


def test_dying_again_and_again_before_being_ready_is_a_crash_loop() -> None:
    backoff = Backoff()
    for _ in range(LOOP_AFTER - 1):
        backoff.died(0.0, was_ready=False)
    assert not backoff.crash_loop
    backoff.died(0.0, was_ready=False)
    assert backoff.crash_loop


def test_one_life_that_was_ready_starts_the_count_anew() -> None:
    backoff = Backoff()
    for _ in range(LOOP_AFTER - 1):
        backoff.died(0.0, was_ready=False)
    backoff.died(0.0, was_ready=True)
    backoff.died(0.0, was_ready=False)
    assert not backoff.crash_loop
