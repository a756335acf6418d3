"""The queue before a model, over real workers: places are shared among tenants, and refusals say what they are."""

import asyncio
from pathlib import Path

import httpx

from ..support.crowd import Crowd, key_file
from ..support.dataplane import data_plane
from ..support.gateway import gateway, one_model
from ..support.procs import wait_until
from ..support.sim import simulator

PLACES = 4
ENOUGH = 100


async def test_two_keys_get_the_same_over_two_workers_though_one_asks_much_more(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(key_file("heavy", "light"))
    keys.chmod(0o600)
    with simulator(model="m", decode_ms=8, max_seqs=64) as sim:
        config = {
            **one_model(sim.url, max_concurrent=PLACES),
            "workers": {"count": 2},
            "keys": {"file": str(keys)},
        }
        with gateway(config) as gate:
            crowd = Crowd(gate.port)
            async with asyncio.TaskGroup() as group:
                for tenant, clients in (("heavy", 50), ("light", 10)):
                    for _ in range(clients):
                        group.create_task(crowd.client(tenant, enough=ENOUGH))
            answered = {tenant: counts.total() for tenant, counts in crowd.answered.items()}
            assert set(crowd.took_s) == {200}
            # they do not begin in the same moment
            assert abs(answered["light"] - answered["heavy"]) <= 0.05 * ENOUGH + PLACES, answered
            names = ("penstock_running_requests", "penstock_queued_requests")
            wait_until(lambda: all(gate.metric(name) == 0 for name in names), 10, "counts at zero")


def test_a_full_queue_says_so_in_status_and_headers() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with (
        simulator(model="m") as sim,
        data_plane(one_model(sim.url, max_concurrent=1, max_queue=0)) as plane,
    ):
        model = plane.worker.fleet.models[0]
        assert plane.call(lambda: plane.worker.admission.try_enter(model))
        reply = httpx.post(f"http://127.0.0.1:{plane.port}/v1/chat/completions", json=body, trust_env=False)
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "queue_full"
        assert reply.headers["x-queue-depth"] == "0"
        assert int(reply.headers["retry-after"]) >= 1
        assert int(reply.headers["retry-after-ms"]) >= 1000
        plane.call(lambda: plane.worker.admission.leave(model))
