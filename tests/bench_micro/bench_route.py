"""Choose a backend by the tally of all workers, and take and give back a place there."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.choice import Choice
from penstock.gateway.lease import Lease
from penstock.gateway.policies.peak_ewma import Ewma

from .material import BACKENDS, SLOTS, rows


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(None, Geometry(slots=SLOTS), owner_pid=1, owner_start=1)
    yield made
    made.close()


def _backend(index: int) -> Any:
    return SimpleNamespace(
        index=index,
        up=True,
        shut=False,
        shunned_until=0.0,
        weight=1.0,
        ramp=1.0,
        hint=0.0,
        rank=0,
        max_concurrent=0,
        credit=0.0,
        ewma=Ewma(),
    )


@pytest.mark.parametrize("backends", [4, BACKENDS])
@pytest.mark.parametrize("policy", ["least_connections", "weighted_round_robin", "power_of_two", "peak_ewma"])
def test_route(benchmark: BenchmarkFixture, segment: Segment, policy: str, backends: int) -> None:
    row, tally = rows(segment)
    model: Any = SimpleNamespace(
        backends=tuple(map(_backend, range(backends))),
        policy=policy,
        plain=policy == "least_connections",
        ranked=False,
    )
    choice = Choice(row, tally, 0, tick=lambda: 1.0, draw=lambda: 0.5)

    def route() -> int:
        chosen = choice.pick(model, (), 1.0)
        assert chosen is not None
        Lease(row, chosen.index).settle()
        return chosen.index

    assert 0 <= benchmark(route) < backends
