"""What workers make of a row of the backend table: hints with an age, and slow starts."""

import pytest

from penstock.cache.table import BackendState
from penstock.gateway.config import Health
from penstock.gateway.fleet import Backend
from penstock.gateway.hints import ramp, take_in

from .test_fleet import fleet

NOW_S = 1000.0


def _backend() -> Backend:
    return fleet("http://a:1").backends[0]


def _row(**fields: int) -> BackendState:
    return BackendState(health=1, **fields)


def _ns(at_s: float) -> int:
    return round(at_s * 1e9)


@pytest.mark.parametrize(("age_s", "waiting", "kv"), [(0.5, 7.0, 0.5), (6.0, 7.0, 0.5), (6.1, 0.0, 0.0)])
def test_a_hint_counts_for_three_intervals(age_s: float, waiting: float, kv: float) -> None:
    backend = _backend()
    row = _row(waiting=7, kv_permille=500, updated_ns=_ns(NOW_S - age_s))
    take_in(backend, row, Health(interval_s=2), NOW_S)
    assert (backend.waiting, backend.kv) == (waiting, kv)


def test_a_server_that_never_said_anything_counts_as_waiting_for_nothing() -> None:
    backend = _backend()
    take_in(backend, _row(waiting=7), Health(), 1.0)
    assert backend.waiting == 0.0


def test_the_ramp_rises_evenly_from_a_tenth_to_all() -> None:
    assert [ramp(age, 10) for age in (0, 1, 5, 9.99, 10, 99)] == [0.1, 0.19, 0.55, 1.0, 1.0, 1.0]
    assert ramp(-1, 10) == 0.1
    assert ramp(0, 0) == 1.0


def test_a_backend_that_came_up_gets_its_weight_little_by_little() -> None:
    backend = _backend()
    health = Health(slow_start_s=10)
    seen = []
    for age in (0, 5, 10):
        take_in(backend, _row(since_ns=_ns(NOW_S)), health, NOW_S + age)
        seen.append(backend.ramp)
    assert seen == [0.1, 0.55, 1.0]


def test_a_slow_start_that_the_worker_began_counts_until_the_controller_knows_of_a_later_one() -> None:
    backend = _backend()
    health = Health(slow_start_s=10)
    row = _row(since_ns=_ns(NOW_S - 100))
    backend.restart_ramp(NOW_S)
    assert backend.ramp == 0.1
    take_in(backend, row, health, NOW_S + 5)
    assert backend.ramp == 0.55
    take_in(backend, _row(since_ns=_ns(NOW_S + 6)), health, NOW_S + 6)
    assert backend.ramp == 0.1


def test_a_reload_does_not_begin_a_slow_start_anew() -> None:
    old = fleet("http://a:1")
    old.backends[0].restart_ramp(NOW_S)
    old.backends[0].waiting = 3.0
    new = fleet("http://a:1", "http://b:1", previous=old)
    assert [b.since_s for b in new.backends] == [NOW_S, float("-inf")]
    assert (new.backends[0].ramp, new.backends[0].waiting) == (0.1, 3.0)
