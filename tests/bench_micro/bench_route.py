"""Choose a backend by the tally of all workers, and take and give back a place there."""

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.lease import Lease
from penstock.gateway.policies.least_connections import least_connections

from .material import BACKENDS, SLOTS, rows


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(None, Geometry(slots=SLOTS), owner_pid=1, owner_start=1)
    yield made
    made.close()


@pytest.mark.parametrize("backends", [4, BACKENDS])
def test_route_least_connections(benchmark: BenchmarkFixture, segment: Segment, backends: int) -> None:
    row, tally = rows(segment)
    weights = [1.0] * backends

    def route() -> int:
        loads = [row.inflight(b) + tally.others_inflight(b, 0) for b in range(backends)]
        chosen = least_connections(loads, weights, 5)
        Lease(row, chosen).settle()
        return chosen

    assert 0 <= benchmark(route) < backends
