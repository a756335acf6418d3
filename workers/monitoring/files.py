"""Which files are made, by their path in the repository."""

from __future__ import annotations

from .dashboards import dashboard
from .panels import DASHBOARDS
from .reference import markdown
from .rules import rules


def files() -> dict[str, str]:
    """Path and text."""
    return {
        "docs/metrics.md": markdown(),
        "deploy/prometheus/rules.yml": rules(),
        **{f"deploy/grafana/dashboards/{name}.json": dashboard(name) for name in DASHBOARDS},
    }
