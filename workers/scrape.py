"""`/metrics`: counter rows of all processes, and what the controller sees itself, as Prometheus text.

Strategy: a scrape reads the segment once and hands families to prometheus_client, which knows the format. A row's
names were written by another process: one that makes no sense is left out. Rows of one worker's two slots are added
up; a gauge counts only while its slot is alive, because its last value would stay for ever.

Families declared in `penstock.gateway.metrics` belong to the workers, those in this file to the controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..cache.rows import read_counters
from ..cache.segment import Segment
from ..cache.slots import read_slot
from ..gateway.metrics import FAMILIES, Family

CONTENT_TYPE = CONTENT_TYPE_LATEST
_NS = 1_000_000_000

RELOADS = Family(
    "penstock_config_reloads_total", "Reloads of the configuration by their outcome.", "counter", ("outcome",)
)
REFUSED = Family(
    "penstock_config_refused_total",
    "Changes of the configuration that were refused, by where they came from.",
    "counter",
    ("source",),
)
PROBES = Family(
    "penstock_backend_probes_total",
    "Health probes by backend and outcome.",
    "counter",
    ("backend", "outcome"),
)
SWEPT = Family("penstock_swept_slots_total", "Slots cleaned up after workers that died.", "counter")
POOL_STARTS = Family(
    "penstock_pool_starts_total",
    "Starts of a pool's servers, and wakes of those that slept, by outcome.",
    "counter",
    ("model", "kind", "outcome"),
)
POOL_START_SECONDS = Family(
    "penstock_pool_start_seconds",
    "How long starts and wakes took that succeeded.",
    "histogram",
    ("model", "kind"),
    buckets_s=(0.5, 1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600),
)
POOL_STOPS = Family(
    "penstock_pool_stops_total", "Servers of a pool that were stopped.", "counter", ("model",)
)
POOL_SLEEPS = Family(
    "penstock_pool_sleeps_total",
    "Servers of a pool that were put to sleep, by outcome.",
    "counter",
    ("model", "outcome"),
)
POOL_DEATHS = Family(
    "penstock_pool_deaths_total",
    "Servers of a pool that ended, or hung, by themselves.",
    "counter",
    ("model",),
)
POOL_SWITCHES = Family(
    "penstock_pool_switches_total",
    "Starts and wakes of a pool for which another had to make room.",
    "counter",
    ("model",),
)
POOL_EVICTIONS = Family(
    "penstock_pool_evictions_total",
    "Times that a pool made room for another: it was idle, or its turn was over.",
    "counter",
    ("model", "cause"),
)
CONTROL_FAMILIES = {
    family.name: family
    for family in (
        *(RELOADS, REFUSED, PROBES, SWEPT),
        *(POOL_STARTS, POOL_START_SECONDS, POOL_STOPS, POOL_SLEEPS, POOL_DEATHS),
        *(POOL_SWITCHES, POOL_EVICTIONS),
    )
}

Series = dict[tuple[str, ...], list[int]]


def render(segment: Segment, own: Iterable[Metric]) -> bytes:
    """The whole exposition: every row's series, then the families in `own`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_families(segment), *own]))
    return generate_latest(registry)


class _Once:
    """A collector of families that exist already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def samples(segment: Segment) -> Iterator[tuple[int, Family, tuple[str, ...], tuple[int, ...]]]:
    """Every series of every row that makes sense: number of the row, family, labels, cells."""
    known = {**FAMILIES, **CONTROL_FAMILIES}
    for row in range(segment.geometry.controller + 1):
        for key, values in read_counters(segment, row):
            name, labels = _parse(key)
            family = known.get(name)
            if family is not None and len(labels) == len(family.labels) and _fits(family, values):
                yield row, family, labels, values


def _families(segment: Segment) -> Iterator[Metric]:
    workers = segment.geometry.slots // 2
    found: dict[Family, Series] = {family: {} for family in (*FAMILIES.values(), *CONTROL_FAMILIES.values())}
    alive = [read_slot(segment, row).alive for row in range(segment.geometry.controller + 1)]
    for row, family, labels, values in samples(segment):
        if family.type == "gauge" and not alive[row]:
            continue
        if family.worker:
            labels = (*labels, str(row % workers))
        total = found[family].setdefault(labels, [0] * len(values))
        for i, value in enumerate(values):
            total[i] += value
    for family, series in found.items():
        yield _metric(family, series)


def _parse(key: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        name, labels = msgspec.msgpack.decode(key, type=tuple[str, tuple[str, ...]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", ()
    return name, labels


def _fits(family: Family, values: tuple[int, ...]) -> bool:
    return len(values) == (len(family.buckets_s) + 2 if family.type == "histogram" else 1)


def _metric(family: Family, series: Mapping[tuple[str, ...], list[int]]) -> Metric:
    labels = (*family.labels, "worker") if family.worker else family.labels
    if family.type == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
        for names, cells in series.items():
            bounds = [*map(_bound, family.buckets_s), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(cells[:-1])), strict=True))
            histogram.add_metric(names, buckets, cells[-1] / _NS)
        return histogram
    make = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=labels)
    for names, (value,) in series.items():
        metric.add_metric(names, value * family.scale)
    return metric


def _bound(seconds: float) -> str:
    return repr(float(seconds))
