"""What a worker counts lands in the cells that its series names, and nowhere else."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.metrics import (
    ADDED,
    FAMILIES,
    LATENCY_BUCKETS_S,
    RETRIES,
    Family,
    Metrics,
    series,
)


class Row:
    """A counter row of plain cells."""

    def __init__(self) -> None:
        self.cells = memoryview(bytearray(8 * 4096)).cast("Q")
        self.names: dict[bytes, tuple[int, int]] = {}
        self._next = 0

    def cell(self, key: bytes, width: int = 1) -> int:
        at, _ = self.names.setdefault(key, (self._next, width))
        self._next = max(self._next, at + width)
        return at

    def read(self, family: Family, *labels: str) -> list[int]:
        at, width = self.names[series(family, *labels)]
        return list(self.cells[at : at + width])


def test_a_series_is_named_by_family_and_labels() -> None:
    assert msgspec.msgpack.decode(series(RETRIES, "m", "503")) == [RETRIES.name, ["m", "503"]]


def test_a_successor_goes_on_counting_in_the_same_cells() -> None:
    row = Row()
    Metrics(row).count(RETRIES, "m", "503", n=2)
    Metrics(row).count(RETRIES, "m", "503")
    assert row.read(RETRIES, "m", "503") == [3]


@given(st.lists(st.integers(0, 10**12), max_size=50))
def test_every_observation_is_in_one_bucket_and_in_the_sum(observed: list[int]) -> None:
    row = Row()
    observe = Metrics(row).histogram(ADDED, "/v1/completions", "MISS")
    for ns in observed:
        observe(ns)
    *buckets, total = row.read(ADDED, "/v1/completions", "MISS")
    assert len(buckets) == len(LATENCY_BUCKETS_S) + 1
    assert (sum(buckets), total) == (len(observed), sum(observed))
    cumulative = 0
    for bound, count in zip(LATENCY_BUCKETS_S, buckets, strict=False):
        cumulative += count
        assert cumulative == sum(ns <= round(bound * 1e9) for ns in observed), "le is inclusive"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_families_keep_to_prometheus_usage(family: Family) -> None:
    assert family.name.startswith("penstock_")
    assert family.help.endswith(".")
    assert (family.type == "counter") == family.name.endswith("_total")
    assert (family.type == "histogram") == bool(family.buckets_s)
    assert list(family.buckets_s) == sorted(set(family.buckets_s))
