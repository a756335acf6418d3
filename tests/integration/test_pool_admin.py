"""Pools asked and steered over the admin port and by the command line, through a gateway that runs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.procs import console_script, run, wait_until

SIM = [console_script(), "sim", "--host", "127.0.0.1", "--port", "{port}", "--model", "{model}"]
SECRET = "sk-never-to-be-seen"


def _pool(**terms: Any) -> dict[str, Any]:
    return {"provider": "process", "command": SIM, "gpus": 0, "idle_timeout_s": 100, **terms}


@pytest.fixture(scope="module")
def gate():
    models = {
        "one": {"aliases": ["first"], "pool": _pool(env={"TOKEN": SECRET}), "max_queue": 7},
        "two": {"pool": _pool()},
        "plain": {"backends": [{"url": "http://127.0.0.1:1"}], "max_concurrent": 9},
    }
    pools = {"gpus": [{"memory": "80GiB"}, {"memory": "80GiB"}]}
    with gateway({"models": models, "pools": pools}) as made:
        yield made


def _get(gate: Gateway, path: str) -> Any:
    answer = httpx.get(gate.admin_url + path, timeout=10, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


def _addresses(gate: Gateway, model: str) -> list[str | None]:
    """Wherever it is told where a pool's servers are."""
    status = _get(gate, "/gateway/status")
    listed = _get(gate, "/gateway/backends")["backends"]
    return [
        *(member["url"] for member in status["pools"][model]["members"]),
        *(backend["url"] for backend in status["models"][model]["backends"]),
        *(backend["url"] for backend in listed if backend["model"] == model),
    ]


def _post(gate: Gateway, path: str, body: Any = None) -> httpx.Response:
    return httpx.post(gate.admin_url + path, json=body, timeout=10, trust_env=False)


def _phase(gate: Gateway, model: str) -> str:
    pools = {one["model"]: one["phase"] for one in _get(gate, "/gateway/pools")["pools"]}
    phase: str = pools[model]
    return phase


def _cli(gate: Gateway, *words: str) -> tuple[int, str]:
    return run([console_script(), *words, "--port", str(gate.port)], timeout_s=30)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(inner) for key, inner in value.items()}
    return [_types(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_the_documented_paths_answer_with_the_documented_keys_and_types(gate):
    assert _types(_get(gate, "/proxy/models/available")) == {
        "models": [{"name": "str", "servedModelName": "str", "modelName": "str", "maxModelLen": "int"}],
        "count": "int",
    }
    assert _types(_get(gate, "/proxy/models/running")) == {
        "active_model": "str",
        "running": "bool",
        "config": {
            "modelName": "str",
            "servedModelName": "str",
            "maxModelLen": "int",
            "toolCallParser": "str",
            "reasoningParser": "str",
        },
    }
    assert _types(_get(gate, "/proxy/stats")) == {"timestamp": "str", "gpus": "list"}
    assert _types(_get(gate, "/proxy/version")) == {"version": "str"}


def test_the_status_keeps_what_old_clients_read(gate):
    status = _get(gate, "/gateway/status")
    assert status["queue_status"]["one"] == {"queue_depth": 0, "max_concurrent": 100, "max_queue_size": 7}
    assert _types(status["config"]) == {
        "log_level": "str",
        "log_level_numeric": "int",
        "gateway_max_concurrent": "int",
        "gateway_max_queue_size": "int",
        "gateway_max_models_concurrent": "int",
        "http_pool_size": "int",
        "vllm_inactivity_timeout": "float",
    }
    assert (status["config"]["log_level"], status["config"]["log_level_numeric"]) == ("INFO", 20)
    assert status["total_gpu_vram_mib"] == 160 * 1024
    assert status["known_footprints_mib"] == {}
    assert status["active_containers"] == {}
    assert set(status["pools"]) == {"one", "two"}
    assert status["configuration"]["models"]["plain"]["max_concurrent"] == 9
    assert SECRET not in json.dumps(status)


def test_no_look_at_anything_wakes_a_pool(gate):
    for path in (
        "/metrics",
        "/gateway/status",
        "/gateway/pools",
        "/gateway/backends",
        "/health",
        "/proxy/metrics",
    ):
        assert httpx.get(gate.admin_url + path, timeout=10, trust_env=False).status_code == 200
    for path in ("/health", "/ready", "/v1/models", "/v1/models/one"):
        assert httpx.get(gate.url + path, timeout=10, trust_env=False).status_code == 200
    assert {_phase(gate, "one"), _phase(gate, "two")} == {"off"}
    assert gate.metric("penstock_pool_starts_total") == 0


def test_metrics_of_the_proxy_are_the_gateways_own(gate):
    text = httpx.get(gate.admin_url + "/proxy/metrics", timeout=10, trust_env=False).text
    assert "penstock_build_info" in text
    assert 'penstock_config_refused_total{source="file"} 0.0' in text  # a rate begins with a sample
    assert "vllm:" not in text


def test_a_switch_wakes_one_and_the_next_switch_has_it_off_again(gate):
    answer = _post(gate, "/proxy/models/switch", {"model_id": "first"})
    assert _types(answer.json()) == {"message": "str", "active_model": "str", "note": "str"}
    wait_until(lambda: _phase(gate, "one") == "ready", what="one is ready")
    running = _get(gate, "/proxy/models/running")
    assert (running["active_model"], running["running"]) == ("one", True)
    (container,) = _get(gate, "/gateway/status")["active_containers"].values()
    assert (container["model"], container["phase"]) == ("one", "ready")
    assert _addresses(gate, "one") == [container["url"]] * 3
    status, said = _cli(gate, "switch", "two")
    assert status == 0
    assert said.startswith(
        "two is to be ready, and the others off; `penstock pools` tells how far it is. Now:\n"
    )
    wait_until(lambda: (_phase(gate, "one"), _phase(gate, "two")) == ("off", "ready"), what="switched")
    assert _addresses(gate, "one") == [None]  # where it was is nobody's now
    assert len(_addresses(gate, "two")) == 3
    for line in ("fleet_published", "configuration_loaded"):  # no operator did anything
        assert line not in gate.log()
    answer = _post(gate, "/proxy/operations/stop")
    assert (_types(answer.json()), answer.json()["status"]) == (
        {"status": "str", "message": "str"},
        "success",
    )
    wait_until(lambda: _phase(gate, "two") == "off", what="all are off")
    assert _post(gate, "/proxy/operations/start").json()["status"] == "success"
    wait_until(lambda: _phase(gate, "one") == "ready", what="the first is ready")
    assert _cli(gate, "stop", "one")[0] == 0
    wait_until(lambda: _phase(gate, "one") == "off", what="one is off")


def test_the_command_line_says_what_pools_do_and_what_cannot_be(gate):
    status, said = _cli(gate, "pools")
    assert status == 0
    assert [line.split()[:3] for line in said.splitlines()[1:]] == [
        ["one", "process", "off"],
        ["two", "process", "off"],
    ]
    status, said = _cli(gate, "wake", "plain")
    assert (status, said.strip()) == (2, "penstock: the model 'plain' has no pool: it is always on")
    status, said = _cli(gate, "wake", "nobody")
    assert (status, said.strip()) == (2, "penstock: the model 'nobody' does not exist")
