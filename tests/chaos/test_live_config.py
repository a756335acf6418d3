"""A hundred changes of the configuration under traffic, each in every worker of two nodes within a second."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.asking import Traffic
from tests.support.gateway import gateway
from tests.support.live import Documents, everywhere, loads_s, told, version
from tests.support.redis import redis_server
from tests.support.sim import simulator

pytestmark = pytest.mark.slow

CHANGES = 100
WITHIN_S = 1.0
DAY_S = 86_400


def _changes(url: str, chance: random.Random) -> list[dict[str, Any]]:
    """Changes of all that is live, in an order that has no pattern."""
    kinds = [
        lambda n: {"models": {"m": {"aliases": [f"name-{n}"]}}},
        lambda n: {"models": {"m": {"policy": ("peak_ewma", "power_of_two", "least_connections")[n % 3]}}},
        lambda n: {"models": {"m": {"backends": [{"url": url, "weight": 1 + n}]}}},
        lambda n: {"models": {"m": {"max_queue": 100 + n}}},
        lambda n: {"models": {"m": {"timeouts": {"first_byte_s": 60 + n}}}},
        lambda n: {"models": {f"more-{n}": {"backends": [{"url": url}]}}},
        lambda n: {"models": {"m": {"version": f"v{n}"}}},
        lambda n: {"cache": {"mode": ("all", "deterministic")[n % 2], "l1": {"ttl_s": 100 + n}}},
        lambda n: {"health": {"interval_s": 1 + n / 100}},
        lambda n: {"log": {"level": ("INFO", "DEBUG")[n % 2]}},
    ]
    # none says what the one before it said: that would be no new version
    return [
        {**chance.choice(kinds)(number), "breaker": {"failures": 10 + number}} for number in range(CHANGES)
    ]


async def test_a_hundred_changes_are_each_in_force_everywhere_within_a_second_and_no_request_fails(
    tmp_path: Path,
) -> None:
    with simulator("--model", "m") as sim, redis_server() as redis:
        model = {"backends": [{"url": sim.url}], "max_concurrent": 200}
        own = {"workers": {"count": 2}, "store": {"url": redis.url, "refresh_s": 3600}}
        file = tmp_path / "own.yaml"
        file.write_text(f"store: {{url: '{redis.url}'}}\n")
        documents = Documents(file, tmp_path, {"models": {"m": model}})
        await asyncio.to_thread(documents.change)
        with gateway(own) as one, gateway(own) as two:
            gates = (one, two)
            pushed: list[dict[int, float]] = [{}, {}]
            traffic = Traffic([gate.port for gate in gates], most=200_000)
            async with traffic.running():
                for number, change in enumerate(_changes(sim.url, random.Random(7)), 2):
                    began = time.time() % DAY_S
                    await asyncio.to_thread(documents.change, **change)
                    await asyncio.to_thread(everywhere, number, *gates)
                    for gate, times in zip(gates, pushed, strict=True):
                        times[(await asyncio.to_thread(told, gate))["generation"]] = began
                    await traffic.more(4)
            assert traffic.wrong == []
            took: list[float] = []
            for gate, times in zip(gates, pushed, strict=True):
                assert version(gate) == str(CHANGES + 1)
                assert len(times) == CHANGES
                loaded = loads_s(gate)
                for generation, began in times.items():
                    assert len(loaded[generation]) == 2
                    took += [(at - began) % DAY_S for at in loaded[generation]]
                assert "config_refused" not in gate.log()
            took.sort()
            print(
                f"\n{CHANGES} changes, {traffic.done} requests: from the command's start to a worker that has it, p50 "
                f"{took[len(took) // 2]:.3f} s, p99 {took[len(took) * 99 // 100]:.3f} s, most {took[-1]:.3f} s"
            )
            assert took[-1] < WITHIN_S
