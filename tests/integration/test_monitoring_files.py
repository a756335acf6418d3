"""Rules and dashboards: current, understood by Prometheus, each rule tested, each alert in the runbook."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

from penstock.gateway.metrics import FAMILIES
from penstock.workers.families import SEEN
from penstock.workers.monitoring.dashboards import asked
from penstock.workers.monitoring.panels import DASHBOARDS
from penstock.workers.monitoring.rules import ALERTS, RECORDED
from penstock.workers.scrape import CONTROL_FAMILIES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
SHOWN = [expr for panels in DASHBOARDS.values() for panel in panels for expr, _ in panel.queries]
ALL = {**FAMILIES, **CONTROL_FAMILIES, **SEEN}


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", DEPLOY / "rules.test.yml")


def test_every_rule_has_a_test_in_which_it_holds_and_every_alert_one_in_which_it_does_not() -> None:
    held, quiet = set(), set()
    for group in yaml.safe_load((DEPLOY / "rules.test.yml").read_text())["tests"]:
        for check in group["promql_expr_test"]:
            alert = re.match(r'ALERTS\{alertname="(\w+)"', check["expr"])
            (held if check["exp_samples"] else quiet).add(alert[1] if alert else check["expr"])
    assert held == {*RECORDED, *(alert.name for alert in ALERTS)}
    assert quiet == {alert.name for alert in ALERTS}


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    entries = re.findall(r"(?m)^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text())
    assert entries == [alert.name for alert in ALERTS]


def test_prometheus_understands_the_scrape_configuration(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    text = (DEPLOY / "prometheus.yml").read_text().replace("/etc/prometheus/penstock-admin-key", str(key))
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "rules.yml").write_text((DEPLOY / "rules.yml").read_text())
    assert f"SUCCESS: {len(RECORDED) + len(ALERTS)} rules found" in promtool(
        "check", "config", tmp_path / "prometheus.yml"
    )


def test_every_expression_of_a_dashboard_is_one(tmp_path: Path) -> None:
    rules = [{"record": f"shown:{at}", "expr": asked(expr)} for at, expr in enumerate(SHOWN)]
    file = tmp_path / "shown.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "shown", "rules": rules}]}))
    assert f"SUCCESS: {len(SHOWN)} rules found" in promtool("check", "rules", file)


def test_expressions_name_families_and_labels_that_there_are() -> None:
    for expr in [*SHOWN, *RECORDED.values(), *(alert.expr for alert in ALERTS)]:
        for name in re.findall(r"(?<![:\w])penstock_\w+(?!\w*:)", expr):
            family = ALL.get(name) or ALL.get(name.removesuffix("_bucket"))
            assert family is not None, name
            assert (family.type == "histogram") == name.endswith("_bucket"), name
        for name in re.findall(r"[\w]+:penstock_\w+:\w+", expr):
            assert name in RECORDED, name
        for name, matchers in re.findall(r"(?<![:\w])(penstock_\w+)\{([^}]*)\}", expr):
            family = ALL.get(name) or ALL[name.removesuffix("_bucket")]
            used = set(re.findall(r'(\w+)=~?"', matchers)) | set(re.findall(r'(\w+)!="', matchers))
            assert used <= {*family.labels, "worker"}, expr


def test_no_expression_is_written_twice() -> None:
    assert len(SHOWN) == len(set(SHOWN))
    assert not {*RECORDED.values()} & {*SHOWN}


def test_dashboards_ask_the_source_that_is_provisioned_and_are_where_they_are_looked_for() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "penstock.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "dashboards" / "penstock.yml").read_text())["providers"][0]
    assert (source["type"], provider["type"]) == ("prometheus", "file")
    uids = set()
    for name in DASHBOARDS:
        told = json.loads((ROOT / f"deploy/grafana/dashboards/{name}.json").read_text())
        uids.add(told["uid"])
        chosen, node = told["templating"][
            "list"
        ]  # each asks with the one before, so that any Prometheus will do
        assert (chosen["type"], chosen["query"], chosen["current"]["value"]) == (
            "datasource",
            source["type"],
            source["uid"],
        )
        asked = [node, *told["panels"], *(target for panel in told["panels"] for target in panel["targets"])]
        assert {each["datasource"]["uid"] for each in asked} == {f"${{{chosen['name']}}}"}
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in told["panels"]}
        assert len(places) == len(told["panels"])
    assert len(uids) == len(DASHBOARDS)


def test_every_family_is_in_a_dashboard_a_rule_or_said_to_be_for_looking_up() -> None:
    everything = " ".join([*SHOWN, *RECORDED.values(), *(alert.expr for alert in ALERTS)])
    unseen = {name for name in ALL if not re.search(rf"(?<![:\w]){name}(_bucket)?\b", everything)}
    assert unseen == LOOKED_UP


#: What an operator asks for when something is wrong, and no panel shows all the time.
LOOKED_UP = {
    "penstock_access_log_lost_total",
    "penstock_api_keys",
    "penstock_api_keys_readable",
    "penstock_batched_requests_total",
    "penstock_build_info",
    "penstock_config_document_version",
    "penstock_config_refused_total",
    "penstock_gpu_memory_foreign_bytes",
    "penstock_pool_fence",
    "penstock_pools_lease_store_up",
    "penstock_request_duration_seconds",
    "penstock_spans_lost_total",
}
