"""Grafana's dashboards, as its JSON model has them (https://grafana.com/docs/grafana/latest/dashboards/)."""

from __future__ import annotations

from typing import Any

import msgspec

from .panels import DASHBOARDS, Panel

NODE = 'instance=~"$node"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3

_TITLES = {
    "overview": "Penstock: overview and objectives",
    "cache": "Penstock: cache",
    "routing": "Penstock: routing",
    "pools": "Penstock: pools and GPUs",
    "workers": "Penstock: workers",
}


def asked(expr: str, node: str = NODE) -> str:
    """An expression for these nodes."""
    return expr.replace("@", node)


def dashboard(name: str) -> str:
    """`deploy/grafana/dashboards/<name>.json`."""
    model = {
        "uid": f"penstock-{name}",
        "title": _TITLES[name],
        "tags": ["penstock"],
        "timezone": "browser",
        "schemaVersion": 38,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    # The one that is provisioned; elsewhere Grafana takes what Prometheus it has.
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "penstock"},
                },
                {
                    "name": "node",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": "label_values(penstock_build_info, instance)",
                    "definition": "label_values(penstock_build_info, instance)",
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "links": [{"type": "dashboards", "tags": ["penstock"], "title": "Penstock", "asDropdown": False}],
        "panels": [_panel(at, panel) for at, panel in enumerate(DASHBOARDS[name])],
    }
    return msgspec.json.format(msgspec.json.encode(model), indent=2).decode() + "\n"


def _panel(at: int, panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "custom": {"fillOpacity": 10, "showPoints": "never"},
    }
    edge = panel.red_above if panel.red_above is not None else panel.red_below
    if edge is not None:
        low, high = ("green", "red") if panel.red_above is not None else ("red", "green")
        steps = [{"color": low, "value": None}, {"color": high, "value": edge}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    return {
        "id": at + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {
            "x": at % _COLUMNS * _WIDTH,
            "y": at // _COLUMNS * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + n), "datasource": _SOURCE, "expr": asked(expr), "legendFormat": legend}
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }
