"""A backend that refuses connections is left aside at once, long before probes say that it is down."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from ..support.gateway import gateway, one_model
from ..support.procs import free_port
from ..support.sim import simulator

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_no_client_sees_a_dead_backend_while_another_lives() -> None:
    with simulator(decode_ms=2) as sim:
        dead = f"http://127.0.0.1:{free_port()}"
        config = one_model(dead, sim.url, name="m")
        config["health"] = {"interval_s": 3600}
        with gateway(config) as gate, httpx.Client(base_url=gate.url, timeout=30) as client:

            def ask(_: int) -> int:
                return client.post("/v1/chat/completions", json=BODY).status_code

            with ThreadPoolExecutor(16) as many:
                statuses = list(many.map(ask, range(400)))
            assert statuses == [200] * 400
            lines = [line for line in gate.log().splitlines() if "upstream_retry" in line]
            assert lines
            assert all("request_id=" in line for line in lines)
            retries = gate.metric("penstock_upstream_retries_total", model="m", cause="connect_failed")
            assert 0 < retries <= 90  # the budget: 10 and a fifth of 400
            assert len(lines) <= retries
