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
PROBES = Family(
    "penstock_backend_probes_total",
    "Health probes by backend and outcome.",
    "counter",
    ("backend", "outcome"),
)
SWEPT = Family("penstock_swept_slots_total", "Slots cleaned up after workers that died.", "counter")
CONTROL_FAMILIES = {family.name: family for family in (RELOADS, PROBES, SWEPT)}

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


def _families(segment: Segment) -> Iterator[Metric]:
    controller = segment.geometry.controller
    workers = segment.geometry.slots // 2
    known = {**FAMILIES, **CONTROL_FAMILIES}
    found: dict[str, Series] = {name: {} for name in known}
    for row in range(controller + 1):
        alive = read_slot(segment, row).alive
        for key, values in read_counters(segment, row):
            name, labels = _parse(key)
            family = known.get(name)
            if family is None or len(labels) != len(family.labels) or not _fits(family, values):
                continue
            if family.type == "gauge" and not alive:
                continue
            if family.worker:
                labels = (*labels, str(row % workers))
            total = found[name].setdefault(labels, [0] * len(values))
            for i, value in enumerate(values):
                total[i] += value
    for name, series in found.items():
        yield _metric(known[name], series)


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
