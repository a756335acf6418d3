"""A gateway to which everything happens that metrics, dashboards and rules are about.

A pool wakes, two take turns on a GPU, one sleeps, one cannot start, a server and a worker are killed, a breaker opens,
queues and limits refuse, a configuration is refused; batches, fallbacks, retries, hits in both layers, streams.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ..integration.test_keys import create
from .gateway import Gateway, gateway
from .pool_gateway import simulator as sim_command
from .procs import free_port, wait_until
from .redis import redis_server
from .sim import simulator

GIB = 1 << 30

#: What this machine has not: GPUs that NVML knows, and pools that nodes share.
NOT_HERE = {
    "penstock_gpu_utilization_ratio",
    "penstock_gpu_memory_used_bytes",
    "penstock_gpu_temperature_celsius",
    "penstock_gpu_power_watts",
    "penstock_pool_owner",
    "penstock_pool_fence",
    "penstock_pools_lease_store_up",
    # without `store`
    "penstock_config_document_version",
}


def pool(command: list[str], **terms: Any) -> dict[str, Any]:
    return {
        "pool": {
            "provider": "process",
            "command": command,
            "ready_timeout_s": 20,
            "stop_timeout_s": 5,
            **terms,
        }
    }


def config(backend: str, redis: str, keys: str, admin_port: int) -> dict[str, Any]:
    nobody = f"http://127.0.0.1:{free_port()}"
    here = [{"url": backend}]
    return {
        "workers": {"count": 2},
        "admin": {"port": admin_port},
        "log": {"access": {}},
        "telemetry": {"otlp_endpoint": nobody, "sample_ratio": 0},
        "cache": {"mode": "deterministic", "l1": {"size": "32MiB"}, "l2": {"url": redis}},
        "keys": {"file": keys},
        "breaker": {"failures": 2, "open_s": 60},
        "health": {"interval_s": 0.3, "fall": 100},
        "pools": {"gpus": [{"memory": GIB}]},
        "models": {
            "m": {"backends": here},
            "batched": {"backends": here, "batching": {"window_ms": 50, "max_items": 8}},
            "flaky": {"backends": [*here, {"url": nobody}], "policy": "weighted_round_robin"},
            "gone": {"backends": [{"url": nobody}], "fallbacks": ["m"]},
            "full": {"backends": here, "max_concurrent": 1, "max_queue": 1},
            "one": pool(sim_command(), memory=GIB),
            "two": pool(sim_command(), memory=GIB),
            "sleeper": pool(sim_command("--dev-mode"), gpus=0, sleep_after_s=0.3, sleep_level=1),
            "broken": pool(["false", "{port}"], gpus=0),
        },
    }


def body_of(model: str, words: str, tokens: int = 4) -> dict[str, Any]:
    return {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": words}]}


class Scene:
    """A gateway with its Prometheus, and what is asked of both."""

    def __init__(self, gate: Gateway, key: str, limited: str) -> None:
        self.gate = gate
        self._key, self._limited = key, limited
        self._turn = 0

    async def wave(self, pools: tuple[str, ...] = ()) -> None:
        """A bit of everything; ``pools`` are asked one after another."""
        self._turn += 1
        headers = {"authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(
            base_url=self.gate.url, headers=headers, timeout=60, trust_env=False
        ) as ask:

            async def chat(model: str, words: str, tokens: int = 4, **more: Any) -> httpx.Response:
                return await ask.post("/v1/chat/completions", json={**body_of(model, words, tokens), **more})

            async def embed(words: str) -> httpx.Response:
                return await ask.post("/v1/embeddings", json={"model": "batched", "input": words})

            async def in_turn() -> None:
                for model in pools:
                    await chat(model, f"turn {self._turn}")

            new = f"question {self._turn}"

            await asyncio.gather(
                *(chat("m", new, temperature=0) for _ in range(4)),
                *(chat("m", new, stream=True) for _ in range(2)),
                *(embed(f"{new} {n}") for n in range(4)),
                *(chat("flaky", f"{new} {n}") for n in range(4)),
                *(chat("full", f"{new} {n}", tokens=60) for n in range(4)),
                *(chat("gone", new), chat("broken", new), in_turn()),
                # so many objects at once that the collector has to come by
                *(chat("m", new, more=[[n] for n in range(12_000)]) for _ in range(2)),
                *(
                    ask.post("/v1/chat/completions", json=body_of("m", new), headers=headers)
                    for headers in [{"authorization": f"Bearer {self._limited}"}] * 3
                ),
            )
            await chat("m", new, temperature=0)

    def series(self) -> set[str]:
        """The families that have a series."""
        return {
            family.name + ("_total" if family.type == "counter" else "")
            for family in text_string_to_metric_families(self.gate.metrics())
            if family.samples
        }


def known(gate: Gateway, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return all(
        httpx.get(f"{gate.url}/v1/models", headers=headers, timeout=5, trust_env=False).is_success
        for _ in range(6)
    )


def happens(scene: Scene) -> None:
    """All that dashboards and rules are about."""
    gate = scene.gate
    asyncio.run(scene.wave(("one", "two", "sleeper")))
    good = gate.file.read_text()
    gate.file.write_text("models: {")
    gate.reload()
    wait_until(lambda: gate.metric("penstock_config_reloads_total", outcome="refused"), what="a refusal")
    gate.file.write_text(good)
    wait_until(lambda: gate.metric("penstock_pool_sleeps_total"), what="a server sleeps")
    pids = re.findall(r"pool_process pool=two member=0 pid=(\d+)", gate.log())
    os.kill(int(pids[-1]), signal.SIGKILL)
    os.kill(gate.worker_pids()[0], signal.SIGKILL)
    wait_until(lambda: gate.metric("penstock_pool_deaths_total"), what="a death")
    wait_until(gate.is_up, what="a worker")
    asyncio.run(scene.wave(("sleeper",)))


@contextmanager
def eventful(folder: Path, admin_port: int) -> Iterator[Scene]:
    """When all of it has happened once; its files are in ``folder``."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        sim = stack.enter_context(simulator(model=["m", "batched", "flaky", "full"], decode_ms=5))
        keys = str(folder / "keys.yaml")
        gate = stack.enter_context(gateway(config(sim.url, redis.url, keys, admin_port)))
        _, key = create(gate.file)
        _, limited = create(gate.file, "--rpm", "1", "--burst", "1")
        wait_until(lambda: known(gate, key) and known(gate, limited), what="the keys are known")
        scene = Scene(gate, key, limited)
        happens(scene)
        yield scene
