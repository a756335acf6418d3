"""What a gateway says of itself at one moment: `/metrics` and `/gateway/status`, read.

Strategy: of the exposition only lines that a frame shows are given to prometheus-client's parser. A node with many
backends has a hundred thousand lines of `vllm:*` families, which would take the parser seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_LINES = re.compile(rf"^(?:penstock_|(?:{'|'.join((RUNNING, WAITING, *KV_USED))})[{{ ]).*\n", re.MULTILINE)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """at_s: when, by a clock that never jumps. series: by a sample's name, labels and value of each."""

    at_s: float
    status: Mapping[str, Any]
    series: Mapping[str, list[tuple[Labels, float]]]

    def each(self, name: str, **labels: str) -> Iterable[tuple[Labels, float]]:
        """The samples of that name that have these labels."""
        return (one for one in self.series.get(name, ()) if labels.items() <= one[0].items())

    def total(self, name: str, **labels: str) -> float:
        """Their sum; 0 of none."""
        return sum(value for _, value in self.each(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Their sums by the values of one label."""
        found: dict[str, float] = {}
        for has, value in self.each(name, **labels):
            found[has.get(label, "")] = found.get(has.get(label, ""), 0.0) + value
        return found

    @property
    def life(self) -> int:
        """What is another after each start of the gateway."""
        return int(self.status["supervisor"]["pid"])


def read(at_s: float, metrics: bytes, status: bytes) -> Sample:
    """Raises ValueError where these are not what a gateway says."""
    told = msgspec.json.decode(status, type=dict[str, Any])
    series: dict[str, list[tuple[Labels, float]]] = {}
    text = "".join(_LINES.findall(metrics.decode("utf-8", "replace")))
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            series.setdefault(one.name, []).append((one.labels, one.value))
    sample = Sample(at_s, told, series)
    if not series or not isinstance(told.get("supervisor"), dict) or not isinstance(told.get("models"), dict):
        raise ValueError("what answers is no gateway")
    return sample
