"""Two gateways that share a Pod through Leases: one start, and a stop when it is idle on both."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ..integration.test_pool_kubernetes import MODEL, config_of
from ..support.gateway import gateway
from ..support.kube_api import KubeApiDouble
from ..support.kube_nodes import KubeNodes
from ..support.kube_rules import rules_of
from ..support.pool_gateway import ask, wait_phase
from ..support.procs import wait_until

RULES = rules_of("penstock-models", "penstock-pods", "penstock-leases")


@pytest.mark.slow  # where leases are new nobody stops anything for half a minute
def test_two_gateways_share_a_pod_and_idle_means_idle_on_both(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "the key")
    with (
        KubeApiDouble(token="t0ken", rules=RULES) as server,
        KubeNodes(server.store, sim=True, api_key="the key") as nodes,
    ):
        server.store.create("vllmmodels", "", MODEL)
        config = config_of(server, tmp_path, {"lease": "kubernetes"}, idle_timeout_s=1.5)
        with gateway(config) as one, gateway(config) as two:
            with ThreadPoolExecutor(8) as crowd:
                asked = [crowd.submit(ask, each) for each in (one, two) * 4]
                assert [answer.result().status_code for answer in asked] == [200] * 8
            assert len(nodes.started) == 1
            pods = server.store.list("pods", "llm")
            # one of them goes on having work: nobody stops it
            for _ in range(30):
                assert ask(one, tokens=8).status_code == 200
                assert server.store.list("pods", "llm")[0]["metadata"]["uid"] == pods[0]["metadata"]["uid"]
            wait_until(lambda: not server.store.list("pods", "llm"), 40)
            wait_phase(one, "off")
            wait_phase(two, "off")
            assert server.asked("delete", "pods") == 1
            assert ask(two).status_code == 200
            assert len(nodes.started) == 2
