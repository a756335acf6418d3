"""What Grafana's dashboards show, a panel each.

In expressions `@` stands for the nodes that were picked above the dashboard; what rules record goes by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The edges of the service level objectives, which panels show as thresholds.
SLO_P95_S, SLO_CRITICAL_S, SLO_ERRORS, SLO_HITS = 0.005, 0.008, 0.01, 0.3


@dataclass(frozen=True)
class Panel:
    """``queries``: expression and legend. ``red_above``/``red_below``: where the objective is missed."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    red_above: float | None = None
    red_below: float | None = None


def _p(title: str, unit: str, *queries: tuple[str, str], **edges: float) -> Panel:
    return Panel(title, unit, queries, **edges)


def _q(q: float, by: str, family: str, only: str = "") -> str:
    labels = f"@,{only}" if only else "@"
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({family}_bucket{{{labels}}}[1m])))"


_ADDED = "instance:penstock_added_latency_seconds:p"

DASHBOARDS: dict[str, tuple[Panel, ...]] = {
    "overview": (
        _p("Requests", "reqps", ("instance:penstock_requests:rate1m{@}", "{{instance}}")),
        _p(
            "Added latency (objective: p95 under 5 ms)",
            "s",
            *((f"{_ADDED}{p}_1m{{@}}", f"{{{{instance}}}} p{p}") for p in (50, 95, 99)),
            red_above=SLO_P95_S,
        ),
        _p(
            "Failed requests (objective: under 1 %)",
            "percentunit",
            ("instance:penstock_requests_failed:ratio1m{@}", "{{instance}}"),
            red_above=SLO_ERRORS,
        ),
        _p(
            "Hit rate (objective: over 30 %)",
            "percentunit",
            ("instance:penstock_cache_hits:ratio5m{@}", "{{instance}}"),
            red_below=SLO_HITS,
        ),
        _p(
            "Added latency p95 by cache outcome",
            "s",
            ("instance_cache:penstock_added_latency_seconds:p95_1m{@}", "{{instance}} {{cache}}"),
            red_above=SLO_CRITICAL_S,
        ),
        _p(
            "Time to first token, p95",
            "s",
            ("instance_model:penstock_time_to_first_token_seconds:p95_1m{@}", "{{model}}"),
        ),
        _p(
            "Inter-token latency, p95",
            "s",
            ("instance_model:penstock_inter_token_latency_seconds:p95_1m{@}", "{{model}}"),
        ),
        _p("Tokens", "ops", ("instance_model:penstock_tokens:rate1m{@}", "{{model}} {{kind}}")),
        _p(
            "Answers by status",
            "reqps",
            ("sum by (status) (rate(penstock_requests_total{@}[1m]))", "{{status}}"),
        ),
        _p(
            "Requests by model",
            "reqps",
            ("sum by (model) (rate(penstock_requests_total{@}[1m]))", "{{model}}"),
        ),
        _p("Errors by code", "reqps", ("sum by (code) (rate(penstock_errors_total{@}[1m]))", "{{code}}")),
        _p("Stages, p95", "s", (_q(0.95, "stage", "penstock_stage_seconds"), "{{stage}}")),
        _p(
            "Autoscale",
            "none",
            ("penstock_autoscale_direction{@}", "{{instance}} direction"),
            ("penstock_autoscale_signal{@}", "{{instance}} signal"),
        ),
        _p(
            "Load, as the autoscale rule sees it",
            "percentunit",
            ("penstock_autoscale_cpu_ratio{@} / 0.7", "{{instance}} CPU"),
            ("penstock_autoscale_requests_per_second{@} / 8000", "{{instance}} requests"),
            ("penstock_autoscale_added_latency_p95_seconds{@} / 0.004", "{{instance}} p95"),
            red_above=1.0,
        ),
        _p("Configuration", "none", ("penstock_config_generation{@}", "{{instance}}")),
        _p(
            "Sources of the configuration",
            "bool",
            ("penstock_config_source_up{@}", "{{instance}} {{source}} can be read"),
            ("penstock_config_refused{@}", "{{instance}} {{source}} is refused"),
        ),
    ),
    "cache": (
        _p(
            "Outcomes",
            "reqps",
            ('sum by (cache) (rate(penstock_requests_total{@,cache!=""}[1m]))', "{{cache}}"),
        ),
        _p(
            "Why not cached",
            "reqps",
            ("sum by (reason) (rate(penstock_cache_bypasses_total{@}[1m]))", "{{reason}}"),
        ),
        _p("Calls shared", "reqps", ("sum by (role) (rate(penstock_flights_total{@}[1m]))", "{{role}}")),
        _p(
            "Entries in shared memory",
            "ops",
            ('sum by (event) (rate(penstock_cache_events_total{@,layer="l1"}[1m]))', "{{event}}"),
        ),
        _p(
            "Shared memory used",
            "percentunit",
            ("penstock_cache_l1_used_bytes{@} / penstock_cache_l1_size_bytes{@}", "{{instance}}"),
        ),
        _p(
            "Redis",
            "ops",
            ('sum by (event) (rate(penstock_cache_events_total{@,layer="l2"}[1m]))', "{{event}}"),
        ),
        _p(
            "Look-ups in Redis, p95",
            "s",
            (_q(0.95, "instance", "penstock_stage_seconds", 'stage="l2"'), "{{instance}}"),
        ),
        _p(
            "Redis in use",
            "bool",
            ("min by (instance) (penstock_cache_l2_up{@})", "{{instance}} workers"),
            ("penstock_cache_l2_synced{@}", "{{instance}} in step with other nodes"),
        ),
    ),
    "routing": (
        _p(
            "In flight",
            "none",
            ("sum by (model, backend) (penstock_inflight_requests{@})", "{{model}} {{backend}}"),
        ),
        _p(
            "Admitted and queued",
            "none",
            ("sum by (model) (penstock_running_requests{@})", "{{model}} admitted"),
            ("sum by (model) (penstock_queued_requests{@})", "{{model}} queued"),
        ),
        _p(
            "Refused by limits and queues",
            "reqps",
            ("sum by (limit) (rate(penstock_limited_total{@}[1m]))", "limit: {{limit}}"),
            (
                'sum by (model, code) (rate(penstock_errors_total{@,code=~"queue_.*|buffers_full"}[1m]))',
                "{{model}} {{code}}",
            ),
        ),
        _p("Backends up", "bool", ("penstock_backend_up{@}", "{{instance}} {{model}} {{backend}}")),
        _p(
            "Breakers open",
            "bool",
            ("penstock_backend_breaker_open{@}", "{{instance}} {{model}} {{backend}}"),
        ),
        _p("Drained", "bool", ("penstock_backend_drained{@}", "{{instance}} {{model}} {{backend}}")),
        _p(
            "Faults of backends",
            "ops",
            ("sum by (backend, kind) (rate(penstock_upstream_faults_total{@}[1m]))", "{{backend}} {{kind}}"),
        ),
        _p(
            "Retries",
            "ops",
            ("sum by (model, cause) (rate(penstock_upstream_retries_total{@}[1m]))", "{{model}} {{cause}}"),
        ),
        _p(
            "Fallbacks",
            "ops",
            ("sum by (model, to) (rate(penstock_fallbacks_total{@}[1m]))", "{{model}} to {{to}}"),
        ),
        _p(
            "Probes",
            "ops",
            (
                "sum by (backend, outcome) (rate(penstock_backend_probes_total{@}[1m]))",
                "{{backend}} {{outcome}}",
            ),
        ),
        _p(
            "Connections to backends",
            "none",
            ("sum by (backend, state) (penstock_upstream_connections{@})", "{{backend}} {{state}}"),
        ),
        _p(
            "Opening them, p95",
            "s",
            (_q(0.95, "instance", "penstock_upstream_connect_seconds"), "{{instance}}"),
        ),
        _p(
            "Several callers in one call",
            "ops",
            ("sum by (outcome) (rate(penstock_batches_total{@}[1m]))", "{{outcome}}"),
        ),
        _p("vLLM: waiting", "none", ("sum by (backend) (vllm:num_requests_waiting{@})", "{{backend}}")),
    ),
    "pools": (
        _p("Phase", "none", ("penstock_pool_phase{@} == 1", "{{instance}} {{model}} {{phase}}")),
        _p(
            "Servers", "none", ("sum by (model, phase) (penstock_pool_members{@} > 0)", "{{model}} {{phase}}")
        ),
        _p("Requests that wait", "none", ("sum by (model) (penstock_waiting_requests{@})", "{{model}}")),
        _p("Waits, p95", "s", (_q(0.95, "model", "penstock_pool_wait_seconds"), "{{model}}")),
        _p(
            "What came of waits",
            "ops",
            ("sum by (model, outcome) (rate(penstock_pool_waits_total{@}[1m]))", "{{model}} {{outcome}}"),
        ),
        _p(
            "Starts and wakes",
            "ops",
            (
                "sum by (model, kind, outcome) (rate(penstock_pool_starts_total{@}[1m]))",
                "{{model}} {{kind}} {{outcome}}",
            ),
        ),
        _p(
            "How long they took, p95",
            "s",
            (_q(0.95, "model, kind", "penstock_pool_start_seconds"), "{{model}} {{kind}}"),
        ),
        _p("Stops", "ops", ("sum by (model) (rate(penstock_pool_stops_total{@}[1m]))", "{{model}}")),
        _p(
            "Sleeps",
            "ops",
            ("sum by (model, outcome) (rate(penstock_pool_sleeps_total{@}[1m]))", "{{model}} {{outcome}}"),
        ),
        _p("Deaths", "ops", ("sum by (model) (rate(penstock_pool_deaths_total{@}[1m]))", "{{model}}")),
        _p(
            "Switches",
            "ops",
            ("sum by (model) (rate(penstock_pool_switches_total{@}[1m]))", "{{model}} came in"),
            (
                "sum by (model, cause) (rate(penstock_pool_evictions_total{@}[1m]))",
                "{{model}} went: {{cause}}",
            ),
        ),
        _p("Owner of shared pools", "bool", ("penstock_pool_owner{@}", "{{instance}} {{model}}")),
        _p(
            "GPU memory",
            "bytes",
            ("penstock_gpu_memory_reserved_bytes{@}", "{{instance}} {{gpu}} pools"),
            ("penstock_gpu_memory_used_bytes{@}", "{{instance}} {{gpu}} in use"),
            ("penstock_gpu_memory_bytes{@}", "{{instance}} {{gpu}} all"),
        ),
        _p("GPU utilization", "percentunit", ("penstock_gpu_utilization_ratio{@}", "{{instance}} {{gpu}}")),
        _p("GPU power", "watt", ("penstock_gpu_power_watts{@}", "{{instance}} {{gpu}}")),
        _p("GPU temperature", "celsius", ("penstock_gpu_temperature_celsius{@}", "{{instance}} {{gpu}}")),
    ),
    "workers": (
        _p("Up", "bool", ("penstock_worker_up{@}", "{{instance}} {{worker}}")),
        _p(
            "Starts", "ops", ("sum by (instance) (rate(penstock_worker_starts_total{@}[5m]))", "{{instance}}")
        ),
        _p(
            "CPU",
            "percentunit",
            ("instance_process:penstock_process_cpu_seconds:rate1m{@}", "{{instance}} {{process}}"),
        ),
        _p(
            "Resident memory",
            "bytes",
            ("sum by (instance, process) (penstock_process_resident_bytes{@})", "{{instance}} {{process}}"),
        ),
        _p(
            "Open descriptors",
            "none",
            ("sum by (instance, process) (penstock_process_open_fds{@})", "{{instance}} {{process}}"),
        ),
        _p("In flight", "none", ("penstock_worker_inflight_requests{@}", "{{instance}} {{worker}}")),
        _p("Clients' connections", "none", ("penstock_client_connections{@}", "{{instance}} {{worker}}")),
        _p(
            "Loop lag, p99",
            "s",
            (_q(0.99, "instance, worker", "penstock_loop_lag_seconds"), "{{instance}} {{worker}}"),
        ),
        _p(
            "Greatest loop lag",
            "s",
            ("penstock_loop_lag_max_seconds{@}", "{{instance}} {{worker}}"),
            red_above=0.25,
        ),
        _p(
            "Collector's pauses, p99",
            "s",
            (_q(0.99, "instance, worker", "penstock_gc_pause_seconds"), "{{instance}} {{worker}}"),
        ),
        _p("Tasks", "none", ("penstock_tasks{@}", "{{instance}} {{worker}}")),
        _p("Bodies held", "bytes", ("penstock_buffered_bytes{@}", "{{instance}}")),
        _p(
            "Streams paused",
            "ops",
            ("sum by (instance) (rate(penstock_stream_pauses_total{@}[1m]))", "{{instance}}"),
        ),
        _p(
            "Series without room",
            "none",
            ("sum by (instance) (penstock_metric_overflow_total{@})", "{{instance}}"),
        ),
    ),
}
