"""What NVML says of GPUs, through the real nvidia-ml-py over a double of its library, as `/metrics` has it."""

from __future__ import annotations

from prometheus_client.core import Metric

from penstock.workers.gpu_view import gpu_metrics
from penstock.workers.pools.nvml import Nvml

from ..support.nvml import FakeGpu, FakeLibrary, pynvml_over

GIB = 1 << 30


def values(metrics: list[Metric]) -> dict[str, dict[str, float]]:
    return {m.name: {s.labels["gpu"]: s.value for s in m.samples} for m in metrics}


async def test_each_gpu_has_its_figures_in_units_of_prometheus() -> None:
    library = FakeLibrary([FakeGpu(total=80 * GIB, used=20 * GIB), FakeGpu(total=80 * GIB)])
    stats = await Nvml(lambda: pynvml_over(library)).stats()
    found = values(list(gpu_metrics(stats)))
    assert found["penstock_gpu_memory_used_bytes"] == {"0": 20 * GIB, "1": 0}
    told = stats[0]
    assert found["penstock_gpu_utilization_ratio"]["0"] == told["utilization_percent"] / 100
    assert found["penstock_gpu_temperature_celsius"]["0"] == told["temperature_c"]
    assert found["penstock_gpu_power_watts"]["0"] == told["power_draw_w"]


def test_without_gpus_there_are_no_families() -> None:
    assert list(gpu_metrics([])) == []
