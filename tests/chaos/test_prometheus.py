"""A real Prometheus, with the files of `deploy`, scrapes a real gateway to which everything happens.

Then every expression of a dashboard, a rule or `docs/slow.md` has numbers.
"""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import httpx
import pytest
import yaml

from penstock.workers.monitoring.dashboards import asked
from penstock.workers.monitoring.panels import DASHBOARDS
from penstock.workers.monitoring.rules import ALERTS, RECORDED

from ..support.eventful import NOT_HERE, eventful
from ..support.procs import Proc, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
TOLD = re.findall(r"(?ms)^```promql\n(.*?)^```", (ROOT / "docs" / "slow.md").read_text())
NOT_DONE = {'event="evicted"', 'status="499"'}  # the cache is never full here, and nobody leaves
SHOWN = [expr for panels in DASHBOARDS.values() for panel in panels for expr, _ in panel.queries]


def prometheus_file(folder: Path, admin_port: int) -> Path:
    """The files of `deploy`, on this gateway and faster."""
    told = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    told["global"] = {"scrape_interval": "400ms", "scrape_timeout": "400ms", "evaluation_interval": "400ms"}
    (job,) = told["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{admin_port}"]}]
    job["authorization"]["credentials_file"] = str(folder / "key")
    (folder / "key").write_text("none is wanted")
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text().replace("interval: 15s", "interval: 400ms")
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(told))
    return folder / "prometheus.yml"


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def values(prometheus: str, expr: str) -> list[float]:
    """Of an expression, without those that are no numbers."""
    found = httpx.get(f"{prometheus}/api/v1/query", params={"query": expr}, timeout=10, trust_env=False)
    assert found.status_code == 200, (expr, found.text)
    numbers = [float(one["value"][1]) for one in found.json()["data"]["result"]]
    return [number for number in numbers if math.isfinite(number)]


@pytest.mark.slow
def test_every_expression_has_numbers(tmp_path: Path) -> None:
    port, admin_port = free_port(), free_port()
    at = f"http://127.0.0.1:{port}"
    argv = ["prometheus", f"--config.file={prometheus_file(tmp_path, admin_port)}", "--log.level=warn"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    left = [asked(expr, 'instance=~".*"') for expr in SHOWN] + [*RECORDED, *(alert.expr for alert in ALERTS)]
    left += TOLD
    left = [expr for expr in left if not any(name in expr for name in NOT_HERE | NOT_DONE)]
    # Prometheus first: it looks for what to scrape 5 s after its start
    with (
        Proc(argv, name="prometheus", ready=lambda: answers(f"{at}/-/ready")),
        eventful(tmp_path, admin_port) as scene,
    ):

        def none_left() -> bool:
            left[:] = [expr for expr in left if not values(at, expr)]
            if left:
                asyncio.run(scene.wave(("one", "two")))
            return not left

        try:
            wait_until(none_left, 60)
        except AssertionError:
            pytest.fail("without numbers:\n" + "\n".join(left))
