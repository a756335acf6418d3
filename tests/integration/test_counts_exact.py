"""What `/metrics` says of requests is what their clients saw, to the last one, though workers are killed meanwhile.

Rounds are asked to their end, then some are held at the backend while the worker that has them is killed: those are
cut, listed, and counted nowhere; all others are counted once, under the status and the outcome that their client got.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..support.gateway import Gateway, gateway
from ..support.procs import WaitFailed, free_port, wait_until
from ..support.sim import Simulator, simulator

HELD = 12
Outcome = tuple[str, str, str]


def counted(gate: Gateway) -> Counter[Outcome]:
    """By model, status and cache outcome."""
    found: Counter[Outcome] = Counter()
    for family in text_string_to_metric_families(gate.metrics()):
        for sample in family.samples:
            if sample.name == "penstock_requests_total" and sample.labels["endpoint"] != "other":
                labels = sample.labels
                # an error of the gateway's own does not say what the cache had to do with it
                cache = "" if labels["model"] == "gone" else labels["cache"]
                found[(labels["model"], labels["status"], cache)] += int(sample.value)
    return found


class Client:
    """Asks, and keeps count of what it was told; `cut` are those that were told nothing."""

    def __init__(self, gate: Gateway) -> None:
        self.gate = gate
        self.told: Counter[Outcome] = Counter()
        self.cut = 0
        self._n = 0

    async def ask(
        self, model: str, *, same: bool = False, stream: bool = False, broken: bool = False
    ) -> None:
        self._n += 1
        words = "the same" if same else f"number {self._n}"
        body: dict[str, object] = {"model": model, "temperature": 0, "max_tokens": 2, "stream": stream}
        if not broken:
            body["messages"] = [{"role": "user", "content": words}]
        # a connection of its own: a kept one would always lead to the same worker
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            try:
                answer = await client.post(f"{self.gate.url}/v1/chat/completions", json=body)
            except httpx.TransportError:
                self.cut += 1
                return
        known = "" if broken or answer.status_code == 404 else model
        self.told[(known, str(answer.status_code), answer.headers.get("x-penstock-cache", ""))] += 1

    async def round(self) -> None:
        """Hits, misses, streams, refusals and a backend that is not there."""
        await self.ask("m", same=True)
        await asyncio.gather(
            *(self.ask("m", same=True) for _ in range(10)),
            *(self.ask("m") for _ in range(10)),
            *(self.ask("m", stream=True) for _ in range(5)),
            *(self.ask("gone") for _ in range(5)),
            *(self.ask("m", broken=True) for _ in range(3)),
            *(self.ask("nobody") for _ in range(3)),
        )


async def kill_under(client: Client, sim: Simulator) -> None:
    """Requests that hang at the backend; one worker dies, then the backend goes on."""
    sim.faults({"kind": "hang", "stage": "headers"})
    held = [asyncio.create_task(client.ask("held")) for _ in range(HELD)]
    gate = client.gate
    wait = lambda: gate.metric("penstock_inflight_requests", model="held") == HELD  # noqa: E731
    await asyncio.to_thread(wait_until, wait, 20, "all are at the backend")
    pid = gate.worker_pids()[0]
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(
        wait_until, lambda: len(gate.worker_pids()) == 2 and pid not in gate.worker_pids(), 20, "a successor"
    )
    sim.faults({})
    await asyncio.gather(*held)


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_requests_by_outcome_are_those_that_clients_counted(rounds: int) -> None:
    with simulator(model=["m", "held"]) as sim:
        config = {
            "workers": {"count": 2},
            "cache": {"mode": "deterministic", "l1": {"size": "32MiB"}},
            "models": {
                "m": {"backends": [{"url": sim.url}]},
                "held": {"backends": [{"url": sim.url}], "cache": {"mode": "off"}},
                "gone": {"backends": [{"url": f"http://127.0.0.1:{free_port()}"}]},
            },
        }
        with gateway(config) as gate:
            client = Client(gate)
            for _ in range(rounds):
                asyncio.run(client.round())
                asyncio.run(kill_under(client, sim))
            with contextlib.suppress(WaitFailed):  # what was just answered is counted at the turn's end
                wait_until(lambda: counted(gate) == client.told, 5)
            assert counted(gate) == client.told
            assert client.cut + client.told[("held", "200", "BYPASS")] == rounds * HELD
            assert client.cut > 0, "at least one of the workers had some"
            assert (
                gate.metric("penstock_swept_slots_total") + gate.metric("penstock_worker_starts_total")
                >= 2 + rounds
            )
