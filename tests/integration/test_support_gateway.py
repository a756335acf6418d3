"""The whole thing once, through the tools the other tests use: simulator, gateway, one request, nothing left over."""

import httpx

from ..support.gateway import gateway, one_model
from ..support.procs import is_running
from ..support.sim import simulator


def test_a_request_goes_through_gateway_and_simulator_and_both_are_gone_afterwards():
    with simulator(model="m") as sim, gateway(one_model(sim.url)) as penstock:
        pids = [sim.pid, penstock.pid, *penstock.worker_pids(), penstock.controller_pid()]
        assert len(penstock.worker_pids()) == 1
        answer = httpx.post(
            f"{penstock.url}/v1/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
            trust_env=False,
        )
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"]
        assert penstock.metric("penstock_requests_total", model="m") == 1
    assert not [pid for pid in pids if pid is None or is_running(pid)]
