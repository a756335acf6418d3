"""Rows of counters become Prometheus text."""

from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.cache.layout import Geometry
from penstock.cache.rows import CounterRow
from penstock.cache.segment import Segment
from penstock.cache.slots import claim
from penstock.gateway.metrics import CONNECTIONS, LAG, LAG_MAX, REQUESTS, Metrics
from penstock.workers import scrape
from penstock.workers.scrape import RELOADS, render


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(None, Geometry(slots=4), owner_pid=1, owner_start=1)
    yield made
    made.close()


def _samples(segment: Segment) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(render(segment, ()).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def _get(segment: Segment, name: str, **labels: str) -> float | None:
    return _samples(segment).get((name, frozenset(labels.items())))


def test_counters_of_all_rows_are_added_up(segment: Segment) -> None:
    for row in (0, 1, 2):
        Metrics(CounterRow(segment, row)).count(REQUESTS, "m", "/v1/chat/completions", "200", "MISS", n=5)
    labels = {"model": "m", "endpoint": "/v1/chat/completions", "status": "200", "cache": "MISS"}
    assert _get(segment, "penstock_requests_total", **labels) == 15


def test_histograms_are_cumulative_in_seconds(segment: Segment) -> None:
    observe = Metrics(CounterRow(segment, 1)).histogram(LAG)
    for ns in (500_000, 1_500_000, 3_000_000_000):
        observe(ns)
    assert _get(segment, "penstock_loop_lag_seconds_bucket", le="0.001", worker="1") == 1
    assert _get(segment, "penstock_loop_lag_seconds_bucket", le="0.002", worker="1") == 2
    assert _get(segment, "penstock_loop_lag_seconds_bucket", le="+Inf", worker="1") == 3
    assert _get(segment, "penstock_loop_lag_seconds_count", worker="1") == 3
    assert _get(segment, "penstock_loop_lag_seconds_sum", worker="1") == pytest.approx(3.002)


def test_the_two_slots_of_a_worker_are_one_label(segment: Segment) -> None:
    for row in (1, 3):
        Metrics(CounterRow(segment, row)).histogram(LAG)(1)
    assert _get(segment, "penstock_loop_lag_seconds_count", worker="1") == 2


def test_a_gauge_counts_only_while_its_slot_is_alive(segment: Segment) -> None:
    slot = claim(segment, 0, 1, 1)
    for row in (0, 2):
        Metrics(CounterRow(segment, row)).gauge(CONNECTIONS, "b", "idle", value=7)
    Metrics(CounterRow(segment, 0)).gauge(LAG_MAX, value=250_000_000)
    assert _get(segment, "penstock_upstream_connections", backend="b", state="idle", worker="0") == 7
    assert _get(segment, "penstock_loop_lag_max_seconds", worker="0") == 0.25
    slot.release()
    assert _get(segment, "penstock_upstream_connections", backend="b", state="idle", worker="0") is None


def test_the_controllers_row_has_its_own_families(segment: Segment) -> None:
    Metrics(CounterRow(segment, segment.geometry.controller)).count(RELOADS, "loaded")
    assert _get(segment, "penstock_config_reloads_total", outcome="loaded") == 1


@pytest.mark.parametrize(
    "key",
    [
        b"\xc1",
        msgspec.msgpack.encode(["unheard_of", []]),
        msgspec.msgpack.encode([REQUESTS.name, ["too few"]]),
        msgspec.msgpack.encode([LAG.name, []]),  # a histogram of one cell
        msgspec.msgpack.encode({"not": "a list"}),
    ],
)
def test_a_name_that_makes_no_sense_is_left_out(segment: Segment, key: bytes) -> None:
    row = CounterRow(segment, 0)
    row.cells[row.cell(key)] += 1
    assert _samples(segment) == {}


def test_every_family_of_the_gateway_can_be_rendered() -> None:
    assert {f.type for f in (*scrape.FAMILIES.values(), *scrape.CONTROL_FAMILIES.values())} <= {
        *("counter", "gauge", "histogram"),
    }
