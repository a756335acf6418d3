"""The bench's objectives from end to end, at a rate that any machine carries: its parts agree with each other."""

import json
import shutil
import sys

import pytest

from penstock.loadtests.bench import __main__ as bench
from penstock.loadtests.bench.rig import steady
from penstock.loadtests.bench.scenarios import slo
from penstock.loadtests.bench.scenarios.objectives import OBJECTIVES

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not there"),
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not there"),
]


def test_generator_gateway_and_access_log_tell_of_the_same_requests(tmp_path, monkeypatch):
    for name, value in {"RATE": 600, "CONNECTIONS": 200, "_STEP": 200, "_MOST": 800, "_STEP_S": 1.0}.items():
        monkeypatch.setattr(slo, name, value)
    monkeypatch.setattr(steady, "late", lambda *_: "")
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "slo", "--rounds", "1", "--seconds", "2"])
    monkeypatch.chdir(tmp_path)
    assert bench.main() == 0
    (file,) = (tmp_path / "var" / "bench").iterdir()
    told = json.loads(file.read_text())
    assert told["faults"] == []
    found = told["medians"]["slo"]["600/s"]
    assert found["errors_percent"] == 0
    assert found["clients"] == 200
    assert found["hit_percent"] > 0
    assert found["own_p50_ms"] > 0
    (page,) = told["pages"]
    assert page.count("\n| ") == len(OBJECTIVES) + 8
