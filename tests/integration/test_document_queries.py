"""Every expression in the documents is one of Prometheus, of metrics and labels that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from penstock.gateway.metrics import FAMILIES
from penstock.workers.families import SEEN
from penstock.workers.monitoring.rules import RECORDED
from penstock.workers.scrape import CONTROL_FAMILIES

ROOT = Path(__file__).resolve().parents[2]
ALL = {family.name: family for family in (*FAMILIES.values(), *CONTROL_FAMILIES.values(), *SEEN.values())}
OF_PROMETHEUS = {"instance", "job", "le"}
GUIDES = sorted((ROOT / "docs").glob("*.md"))
NAME = re.compile(r"\bpenstock_[a-z0-9_]+")


def expressions() -> dict[str, str]:
    """In blocks, and between backticks where a function or an operator is in it."""
    found = {}
    for page in GUIDES:
        text = page.read_text()
        told = re.findall(r"(?ms)^```promql\n(.*?)^```", text)
        told += [code for code in re.findall(r"`([^`\n]+)`", text) if NAME.search(code) and "(" in code]
        for number, expr in enumerate(told):
            found[f"{page.stem.replace('-', '_')}:{number}"] = expr
    return found


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"told:{name}", "expr": expr} for name, expr in expressions().items()]
    assert len(rules) > 30
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "told", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def family(name: str) -> str:
    return name if name in ALL else re.sub(r"_(bucket|sum|count)$", "", name)


def test_every_metric_that_is_named_is_there() -> None:
    known = {*ALL, *(rule.partition(":")[2].partition(":")[0] for rule in RECORDED)}
    named = {
        (page.name, name) for page in [ROOT / "README.md", *GUIDES] for name in NAME.findall(page.read_text())
    }
    assert not [(page, name) for page, name in named if family(name) not in known]
    histograms = re.findall(r"penstock_\w+_bucket", "".join(expressions().values()))
    assert not [name for name in histograms if ALL[family(name)].type != "histogram"]


def test_every_label_that_is_asked_for_is_the_metrics() -> None:
    lost = []
    for where, expr in expressions().items():
        for name, inside in re.findall(r"(penstock_\w+)\{([^}]*)\}", expr):
            of = ALL[family(name)]
            labels = {*of.labels, *OF_PROMETHEUS, *(("worker",) if of.worker else ())}
            lost += [(where, label) for label in re.findall(r"(\w+) *[=!]", inside) if label not in labels]
        by = re.search(r"by \(([^)]*)\)", expr)
        names = {family(name) for name in NAME.findall(expr)} & ALL.keys()
        if by and names:
            labels = OF_PROMETHEUS.union(*({*ALL[name].labels, "worker"} for name in names))
            lost += [(where, label) for label in re.findall(r"\w+", by[1]) if label not in labels]
    assert not lost
