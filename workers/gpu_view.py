"""What NVML says of each GPU, as metrics; a figure that a GPU does not give is 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric

from . import families

_FIGURES = (
    (families.GPU_UTILIZATION, "utilization_percent", 0.01),
    (families.GPU_MEMORY_USED_BYTES, "memory_used_mb", 1 << 20),
    (families.GPU_TEMPERATURE, "temperature_c", 1),
    (families.GPU_POWER, "power_draw_w", 1),
)


def gpu_metrics(stats: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Of the figures that `GET /proxy/stats` shows."""
    if not stats:
        return
    for family, key, scale in _FIGURES:
        metric = families.metric(family)
        for gpu in stats:
            metric.add_metric([str(gpu["index"])], gpu[key] * scale)
        yield metric
