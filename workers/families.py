"""The families that the controller fills at the moment of a scrape, from what it sees itself.

Those that are counted in rows are in :mod:`penstock.gateway.metrics` (workers) and :mod:`penstock.workers.scrape`
(controller).
"""

from __future__ import annotations

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ..gateway.metrics import Family

CONFIG_GENERATION = Family("penstock_config_generation", "Generation of the configuration in use.", "gauge")
CONFIG_REFUSED_NOW = Family(
    "penstock_config_refused",
    "1 while what a source of the configuration says is refused, and something older in force.",
    "gauge",
    ("source",),
)
CONFIG_SOURCE_UP = Family(
    "penstock_config_source_up", "1 while a source of the configuration can be read.", "gauge", ("source",)
)
CONFIG_DOCUMENT_VERSION = Family(
    "penstock_config_document_version", "Version of the shared document in force; 0 without one.", "gauge"
)
BUILD_INFO = Family("penstock_build_info", "Always 1; the labels say what runs.", "gauge", ("version",))
INFLIGHT_REQUESTS = Family(
    "penstock_inflight_requests", "Requests at a backend now.", "gauge", ("model", "backend")
)
BACKEND_UP = Family("penstock_backend_up", "1 when probes succeed.", "gauge", ("model", "backend"))
BACKEND_BREAKER_OPEN = Family(
    "penstock_backend_breaker_open",
    "1 while the breaker lets no request through but a probe.",
    "gauge",
    ("model", "backend"),
)
BACKEND_DRAINED = Family(
    "penstock_backend_drained", "1 while it is out of service.", "gauge", ("model", "backend")
)
RUNNING_REQUESTS = Family("penstock_running_requests", "Requests admitted now.", "gauge", ("model",))
QUEUED_REQUESTS = Family(
    "penstock_queued_requests", "Requests that wait for a place now.", "gauge", ("model",)
)
WAITING_REQUESTS = Family(
    "penstock_waiting_requests",
    "Requests that wait for their model's servers to wake now.",
    "gauge",
    ("model",),
)
BUFFERED_BYTES = Family(
    "penstock_buffered_bytes", "Bytes of bodies and responses held on this node.", "gauge"
)
WORKER_UP = Family("penstock_worker_up", "1 while the worker runs.", "gauge", ("worker",))
WORKER_STARTS = Family(
    "penstock_worker_starts_total", "How often the worker was started.", "counter", ("worker",)
)
METRIC_OVERFLOW = Family(
    "penstock_metric_overflow_total",
    "Series that found no room in a row of counters.",
    "counter",
    ("worker",),
)
PROCESS_CPU_SECONDS = Family(
    "penstock_process_cpu_seconds_total", "CPU time of a process.", "counter", ("process", "pid")
)
PROCESS_RESIDENT_BYTES = Family(
    "penstock_process_resident_bytes", "Resident memory of a process.", "gauge", ("process", "pid")
)
PROCESS_OPEN_FDS = Family(
    "penstock_process_open_fds", "Open file descriptors of a process.", "gauge", ("process", "pid")
)
API_KEYS = Family("penstock_api_keys", "API keys that are known.", "gauge")
API_KEYS_READABLE = Family(
    "penstock_api_keys_readable", "0 while the place that keeps API keys cannot be read.", "gauge"
)
CACHE_L1_SIZE_BYTES = Family("penstock_cache_l1_size_bytes", "Bytes in which L1 keeps entries.", "gauge")
CACHE_L1_USED_BYTES = Family(
    "penstock_cache_l1_used_bytes", "Bytes of L1 that hold entries, dead ones included.", "gauge"
)
CACHE_L2_SYNCED = Family(
    "penstock_cache_l2_synced",
    "1 while other nodes' flushes are known here; otherwise L2 is not used.",
    "gauge",
)
GPU_MEMORY_BYTES = Family("penstock_gpu_memory_bytes", "Memory of a GPU of this node.", "gauge", ("gpu",))
GPU_MEMORY_RESERVED_BYTES = Family(
    "penstock_gpu_memory_reserved_bytes",
    "Memory of a GPU that servers of pools have, or have been promised.",
    "gauge",
    ("gpu",),
)
GPU_MEMORY_FOREIGN_BYTES = Family(
    "penstock_gpu_memory_foreign_bytes",
    "Memory of a GPU that programs took which are no servers of pools, when last seen without these.",
    "gauge",
    ("gpu",),
)
POOL_PHASE = Family("penstock_pool_phase", "1 for what a model's pool is doing.", "gauge", ("model", "phase"))
POOL_MEMBERS = Family(
    "penstock_pool_members", "Servers of a pool by what they are doing.", "gauge", ("model", "phase")
)
POOL_OWNER = Family(
    "penstock_pool_owner",
    "1 where this node may stop the servers of a shared pool, and can prove it.",
    "gauge",
    ("model",),
)
POOL_FENCE = Family(
    "penstock_pool_fence", "The highest fencing number of a shared pool.", "gauge", ("model",)
)
POOLS_LEASE_STORE_UP = Family(
    "penstock_pools_lease_store_up",
    "1 where the store that has the leases of shared pools answered when it was last asked.",
    "gauge",
)
GPU_UTILIZATION = Family(
    "penstock_gpu_utilization_ratio", "How much of the last moment a GPU was busy, 0 to 1.", "gauge", ("gpu",)
)
GPU_MEMORY_USED_BYTES = Family(
    "penstock_gpu_memory_used_bytes", "Memory of a GPU in use, by whatever program.", "gauge", ("gpu",)
)
GPU_TEMPERATURE = Family("penstock_gpu_temperature_celsius", "Temperature of a GPU.", "gauge", ("gpu",))
GPU_POWER = Family("penstock_gpu_power_watts", "Power that a GPU draws.", "gauge", ("gpu",))
AUTOSCALE_DIRECTION = Family(
    "penstock_autoscale_direction",
    "What the rule for the number of gateways says: 1 one more, -1 one fewer, 0 as many as there are.",
    "gauge",
)
AUTOSCALE_SIGNAL = Family(
    "penstock_autoscale_signal",
    "The same as a ratio for a HorizontalPodAutoscaler with the target 1: 2, 0.5 or 1.",
    "gauge",
)
AUTOSCALE_CPU = Family(
    "penstock_autoscale_cpu_ratio",
    "How much of their cores the workers used over the last minute, 0 to 1.",
    "gauge",
)
AUTOSCALE_RPS = Family(
    "penstock_autoscale_requests_per_second", "Requests a second over the last minute.", "gauge"
)
AUTOSCALE_P95 = Family(
    "penstock_autoscale_added_latency_p95_seconds",
    "The 95th percentile of what the gateway added, over the last minute; 0 where there were no requests.",
    "gauge",
)

#: All of them, by name.
SEEN: dict[str, Family] = {
    family.name: family
    for family in (
        CONFIG_GENERATION,
        BUILD_INFO,
        INFLIGHT_REQUESTS,
        BACKEND_UP,
        BACKEND_BREAKER_OPEN,
        BACKEND_DRAINED,
        RUNNING_REQUESTS,
        QUEUED_REQUESTS,
        WAITING_REQUESTS,
        BUFFERED_BYTES,
        CONFIG_REFUSED_NOW,
        CONFIG_SOURCE_UP,
        CONFIG_DOCUMENT_VERSION,
        WORKER_UP,
        WORKER_STARTS,
        METRIC_OVERFLOW,
        PROCESS_CPU_SECONDS,
        PROCESS_RESIDENT_BYTES,
        PROCESS_OPEN_FDS,
        API_KEYS,
        API_KEYS_READABLE,
        CACHE_L1_SIZE_BYTES,
        CACHE_L1_USED_BYTES,
        CACHE_L2_SYNCED,
        GPU_MEMORY_BYTES,
        GPU_MEMORY_RESERVED_BYTES,
        GPU_MEMORY_FOREIGN_BYTES,
        POOL_PHASE,
        POOL_MEMBERS,
        POOL_OWNER,
        POOL_FENCE,
        POOLS_LEASE_STORE_UP,
        *(GPU_UTILIZATION, GPU_MEMORY_USED_BYTES, GPU_TEMPERATURE, GPU_POWER),
        *(AUTOSCALE_DIRECTION, AUTOSCALE_SIGNAL, AUTOSCALE_CPU, AUTOSCALE_RPS, AUTOSCALE_P95),
    )
}


def metric(family: Family, value: float | None = None) -> GaugeMetricFamily | CounterMetricFamily:
    """An empty metric of a family, to be filled; or with its one ``value``."""
    make = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    if value is not None:
        return make(family.name, family.help, value=value)
    return make(family.name, family.help, labels=family.labels)
