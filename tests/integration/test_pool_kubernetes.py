"""The whole way: a gateway whose model is a Pod made from a VLLMModel, or a replica, in a double of Kubernetes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.kube_api import KubeApiDouble
from ..support.kube_nodes import KubeNodes, free_address
from ..support.kube_rules import rules_of
from ..support.pool_gateway import ask, kill_controller, phases, pool, tell, wait_phase
from ..support.procs import wait_until

MODEL = {
    "apiVersion": "vllm.sir-alfred.io/v1alpha1",
    "kind": "VLLMModel",
    "metadata": {"name": "qwen3"},
    "spec": {"modelName": "Qwen/Qwen3-8B"},
}


@pytest.fixture
def server() -> Iterator[KubeApiDouble]:
    with KubeApiDouble(token="t0ken", rules=rules_of("penstock-models", "penstock-pods")) as double:
        double.store.create("vllmmodels", "", MODEL)
        yield double


@pytest.fixture
def nodes(server: KubeApiDouble) -> Iterator[KubeNodes]:
    with KubeNodes(server.store, sim=True, api_key="the key") as running:
        yield running


def config_of(server: KubeApiDouble, folder: Path, pools: dict[str, Any], **terms: Any) -> dict[str, Any]:
    """One model with a pool of Pods."""
    (folder / "token").write_text("t0ken\n")
    pool = {
        "provider": "kubernetes",
        "vllm_model": "qwen3",
        "namespace": "llm",
        "pod": {"secrets": ["vllm"]},
        "api_key_env": "VLLM_API_KEY",
        "ready_timeout_s": 30,
        "stop_timeout_s": 5,
        "idle_timeout_s": 100,
        "unplaced_timeout_s": 0.2,
    }
    api = {"server": server.url, "token_file": str(folder / "token")}
    return {"models": {"m": {"pool": pool | terms}}, "pools": {"kubernetes": api} | pools}


@pytest.fixture
def running(
    server: KubeApiDouble, nodes: KubeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    monkeypatch.setenv("VLLM_API_KEY", "the key")
    with gateway(config_of(server, tmp_path, {})) as made:
        yield made


def shown(server: KubeApiDouble) -> str | None:
    return server.store.get("vllmmodels", "", "qwen3").get("status", {}).get("phase")


def test_a_request_wakes_a_pod_and_is_answered_and_a_stop_takes_it_away(running, server, nodes):
    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda _: ask(running), range(8)))

    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(int(answer.headers["x-penstock-wake-ms"]) > 0 for answer in answers[:1])
    assert len(nodes.started) == 1
    wait_until(lambda: shown(server) == "Ready")
    tell(running, "stop")
    wait_phase(running, "off")
    assert server.store.list("pods", "llm") == []
    wait_until(lambda: shown(server) == "Off")


def test_a_pod_that_is_deleted_under_the_gateway_is_started_again_for_who_comes(running, server, nodes):
    assert ask(running).status_code == 200
    (pod,) = server.store.list("pods", "llm")

    server.store.delete("pods", "llm", pod["metadata"]["name"], {})
    wait_until(lambda: pool(running).get("phase") in ("off", "starting"))

    assert ask(running).status_code == 200
    assert len(nodes.started) == 2


def test_a_controller_that_is_killed_is_followed_by_one_that_takes_the_pod_over(running, server, nodes):
    assert ask(running).status_code == 200

    kill_controller(running)
    wait_until(lambda: "pool_adopts pool=m" in running.log())
    wait_phase(running, "ready")

    assert ask(running, tokens=4).status_code == 200
    assert len(nodes.started) == 1


def test_a_controller_that_is_killed_while_a_pod_starts_is_followed_by_one_that_waits_for_it(
    running, server, nodes
):
    nodes.nudge(slow=True)
    with ThreadPoolExecutor(1) as crowd:
        asked = crowd.submit(ask, running)
        wait_until(lambda: server.store.list("pods", "llm"))

        kill_controller(running)
        wait_until(lambda: "pool_adopts pool=m member=0 state=starting" in running.log())
        nodes.nudge(slow=False)

        assert asked.result().status_code == 200
    assert len(nodes.started) == 1


def test_every_waiter_gets_the_reason_and_the_next_success_serves(running, server, nodes):
    nodes.nudge(gpus=0)
    with ThreadPoolExecutor(4) as crowd:
        answers = list(crowd.map(lambda _: ask(running), range(4)))

    assert {answer.status_code for answer in answers} == {503}
    assert all("Insufficient nvidia.com/gpu" in answer.text for answer in answers)
    assert shown(server) == "Failed" or "failed" in phases(running)
    assert server.store.list("pods", "llm") == []

    nodes.nudge(gpus=8)
    wait_until(lambda: ask(running).status_code == 200)


def test_probes_and_lists_make_no_pod(running, server):
    for url in (
        f"{running.url}/health",
        f"{running.url}/v1/models",
        f"{running.url}/ready",
        f"{running.admin_url}/metrics",
    ):
        assert httpx.get(url, timeout=10, trust_env=False).status_code == 200

    assert server.asked("create", "pods") == 0


SCALED = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "vllm"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "vllm"}},
        "template": {
            "metadata": {"labels": {"app": "vllm"}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm", "args": ["--served-model-name", "m"]}]},
        },
    },
}


def test_a_request_wakes_a_deployment(nodes, server, tmp_path):
    """Its Service is where its one Pod is, as far as a client can see."""
    nodes.address, nodes.api_key = free_address(), None
    server.rules = rules_of("penstock-scale")
    server.store.create("deployments", "llm", SCALED)
    config = config_of(server, tmp_path, {})
    pool_terms = {
        "provider": "kubernetes",
        "namespace": "llm",
        "scale": {"kind": "deployment", "name": "vllm"},
    }
    config["models"]["m"] = {"pool": pool_terms, "backends": [{"url": f"http://{nodes.address}:8000"}]}

    with gateway(config) as running:
        assert ask(running).status_code == 200
        assert len(server.store.list("pods", "llm")) == 1
        tell(running, "stop")
        wait_phase(running, "off")
        assert server.store.get("deployments", "llm", "vllm")["spec"]["replicas"] == 0
        assert ask(running, tokens=5).status_code == 200
