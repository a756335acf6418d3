"""Recording and alert rules for Prometheus, the expressions that dashboards show too.

A recorded series is named `level:metric:operation` (https://prometheus.io/docs/practices/rules/). Rates look back a
minute, so scrapes must not be further apart than 15 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

HEAD = "# Made by `make docs` from workers/monitoring; do not edit.\n"

_ALL = "sum by (instance) (rate(penstock_requests_total[1m]))"
_FAILED = 'sum by (instance) (rate(penstock_requests_total{status=~"5.."}[1m]))'
_ASKED = 'sum by (instance) (rate(penstock_requests_total{cache=~"HIT-L1|HIT-L2|MISS|COALESCED"}[5m]))'
_HIT = 'sum by (instance) (rate(penstock_requests_total{cache=~"HIT-L1|HIT-L2"}[5m]))'
_ADDED = "rate(penstock_added_latency_seconds_bucket[1m])"


def _quantile(q: float, by: str, rate: str) -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) ({rate}))"


#: Name and expression.
RECORDED: dict[str, str] = {
    "instance:penstock_requests:rate1m": _ALL,
    "instance:penstock_requests_failed:ratio1m": f"({_FAILED} or 0 * {_ALL}) / {_ALL}",
    "instance:penstock_added_latency_seconds:p50_1m": _quantile(0.5, "instance", _ADDED),
    "instance:penstock_added_latency_seconds:p95_1m": _quantile(0.95, "instance", _ADDED),
    "instance:penstock_added_latency_seconds:p99_1m": _quantile(0.99, "instance", _ADDED),
    "instance_cache:penstock_added_latency_seconds:p95_1m": _quantile(0.95, "instance, cache", _ADDED),
    "instance:penstock_cache_hits:ratio5m": f"({_HIT} or 0 * {_ASKED}) / {_ASKED}",
    "instance_model:penstock_tokens:rate1m": "sum by (instance, model, kind) (rate(penstock_tokens_total[1m]))",
    "instance_model:penstock_time_to_first_token_seconds:p95_1m": _quantile(
        0.95, "instance, model", "rate(penstock_time_to_first_token_seconds_bucket[1m])"
    ),
    "instance_model:penstock_inter_token_latency_seconds:p95_1m": _quantile(
        0.95, "instance, model", "rate(penstock_inter_token_latency_seconds_bucket[1m])"
    ),
    "instance_process:penstock_process_cpu_seconds:rate1m": (
        "sum by (instance, process) (rate(penstock_process_cpu_seconds_total[1m]))"
    ),
}


def _lately(counter: str, window: str = "10m") -> str:
    """How much a counter has grown, counting one that was not there before; `increase` would say 0 of that."""
    return f"({counter} - ({counter} offset {window} or 0 * {counter}))"


@dataclass(frozen=True)
class Alert:
    """``expr`` compared by ``when`` for so long is an alert; ``expr`` alone says how it is now."""

    name: str
    expr: str
    when: str
    lasts: str
    severity: str
    summary: str

    def rule(self) -> dict[str, Any]:
        """As Prometheus has it."""
        return {
            "alert": self.name,
            "expr": f"{self.expr} {self.when}",
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": f"docs/runbook.md#{self.name.lower()}"},
        }


_P95 = "instance:penstock_added_latency_seconds:p95_1m"

ALERTS = (
    Alert(
        "PenstockDown",
        'up{job="penstock"}',
        "== 0",
        "1m",
        "critical",
        "{{ $labels.instance }} cannot be scraped.",
    ),
    Alert(
        *("PenstockLatencyHigh", _P95, "> 0.005", "5m", "warning"),
        "{{ $labels.instance }} adds {{ $value | humanizeDuration }} at p95.",
    ),
    Alert(
        *("PenstockLatencyCritical", _P95, "> 0.008", "2m", "critical"),
        "{{ $labels.instance }} adds {{ $value | humanizeDuration }} at p95.",
    ),
    Alert(
        *("PenstockErrors", "instance:penstock_requests_failed:ratio1m", "> 0.01", "1m", "critical"),
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.instance }} fail.",
    ),
    Alert(
        *("PenstockHitRateLow", "instance:penstock_cache_hits:ratio5m", "< 0.3", "10m", "warning"),
        "{{ $value | humanizePercentage }} of what may be cached is a hit on {{ $labels.instance }}.",
    ),
    Alert(
        "PenstockBackendDown",
        "(penstock_backend_up unless on (instance, model) penstock_pool_phase)",
        *("== 0", "2m", "warning"),
        "{{ $labels.instance }} finds {{ $labels.backend }} of {{ $labels.model }} down.",
    ),
    Alert(
        *("PenstockBreakerOpen", "penstock_backend_breaker_open", "== 1", "1m", "warning"),
        "{{ $labels.instance }} sends nothing to {{ $labels.backend }} of {{ $labels.model }}.",
    ),
    Alert(
        "PenstockQueueRefuses",
        'sum by (instance, model) (rate(penstock_errors_total{code=~"queue_full|queue_timeout"}[5m]))',
        *("> 0.1", "5m", "warning"),
        "{{ $labels.model }} has no place for {{ $value | humanize }} requests a second on {{ $labels.instance }}.",
    ),
    Alert(
        "PenstockWakeFails",
        "sum by (instance, model) (" + _lately('penstock_pool_starts_total{outcome="failed"}') + ")",
        *("> 0", "0m", "warning"),
        "{{ $labels.model }} could not be started on {{ $labels.instance }}.",
    ),
    Alert(
        "PenstockConfigRefused",
        "sum by (instance) (" + _lately('penstock_config_reloads_total{outcome=~"refused|failed"}') + ")",
        *("> 0", "0m", "warning"),
        "{{ $labels.instance }} keeps its old configuration.",
    ),
    Alert(
        "PenstockWorkersDie",
        "sum by (instance) (" + _lately("penstock_swept_slots_total") + ")",
        *("> 2", "0m", "warning"),
        "{{ $value }} workers of {{ $labels.instance }} have died within 10 minutes.",
    ),
    Alert(
        *(
            "PenstockLoopStalls",
            "max by (instance) (penstock_loop_lag_max_seconds)",
            "> 0.25",
            "1m",
            "warning",
        ),
        "A worker of {{ $labels.instance }} stands still for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        *("PenstockRedisOut", "min by (instance) (penstock_cache_l2_up)", "== 0", "2m", "warning"),
        "{{ $labels.instance }} does without Redis.",
    ),
    Alert(
        "PenstockMetricsLost",
        "sum by (instance) (penstock_metric_overflow_total)",
        *("> 0", "0m", "warning"),
        "{{ $labels.instance }} has more series than it has room for.",
    ),
)


def rules() -> str:
    """`deploy/prometheus/rules.yml`."""
    recording = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    groups = [
        {"name": "penstock", "interval": "15s", "rules": recording},
        {"name": "penstock-alerts", "interval": "15s", "rules": [alert.rule() for alert in ALERTS]},
    ]
    return HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000, allow_unicode=True)
