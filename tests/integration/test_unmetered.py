"""What `make bench --only metrics` compares with: a gateway that really records nothing, and is one otherwise."""

import os
import sys
import urllib.request

import pytest

from penstock.loadtests.bench.rig import payload
from penstock.loadtests.bench.rig.process import Child, answers, free_port
from penstock.loadtests.bench.subjects import REQUESTS, Gateway

from ..bench_micro import unmetered


@pytest.fixture
def backend(tmp_path):
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "penstock.loadtests.sim.main",
        "--port",
        str(port),
        "--model",
        payload.MODEL,
    ]
    child = Child("sim", [*argv, "--canned"], tmp_path / "sim.log")
    child.until(lambda: answers(port), "listening")
    yield port
    child.stop()


def ask(gateway):
    body = payload.chat_body(temperature=0)
    asked = urllib.request.Request(gateway.url(""), body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return answer.headers["x-penstock-cache"]


def test_a_gateway_without_metrics_answers_and_counts_nothing(tmp_path, backend):
    cores = sorted(os.sched_getaffinity(0))
    program = [sys.executable, "-m", unmetered.__name__]
    gateway = Gateway(
        *(tmp_path, {payload.MODEL: backend}),
        cores=cores[:1],
        machine=cores,
        more={"cache": {"l1": {"size": "16MiB"}}},
        program=program,
        counts=False,
    )
    try:
        assert [ask(gateway) for _ in range(3)] == ["MISS", "HIT-L1", "HIT-L1"]
        gateway.settled()
        page = gateway.metrics()
        assert page.total(REQUESTS) == page.total("penstock_added_latency_seconds_count") == 0
        assert page.total("penstock_worker_up") == 1
    finally:
        gateway.stop()


def test_a_name_that_is_gone_is_no_measurement_without(monkeypatch):
    monkeypatch.setattr(unmetered, "REPLACED", ((unmetered.Metrics, "no_such_name", print),))
    with pytest.raises(AttributeError):
        unmetered.replace()
