"""Sentinel and Cluster behind a gateway: what is kept there outlives the gateway, and a failover costs no request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.asking import Question
from ..support.gateway import gateway
from ..support.l2 import Place, place
from ..support.outage import Scene
from ..support.sim import Simulator, simulator
from .redis_nodes import asked, config, in_step, upstream

QUESTIONS = [Question(f"kept {n}", stream=n % 2 == 0) for n in range(24)]


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with simulator(model="m", any_model=True, created=1, decode_ms=1) as made:
        yield made


def _config(sim: Simulator, where: Place, **l2: Any) -> dict[str, Any]:
    redis = where.settings
    return config(
        sim, redis.url, {"size": 0}, topology=redis.topology, nodes=list(redis.nodes), lease_ms=60_000, **l2
    )


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
async def test_answers_outlive_the_gateway_and_a_failover_costs_no_request(kind: str, sim: Simulator) -> None:
    with place(kind) as where:
        with gateway(_config(sim, where)) as gate:
            in_step(gate)
            for question in QUESTIONS:
                assert (await asked(gate, question)).cache == "MISS"
        # it has stored everything before it ended
        with gateway(_config(sim, where, deadline_ms=200)) as gate:
            in_step(gate)
            before = upstream(sim)
            for question in QUESTIONS:
                assert (await asked(gate, question)).cache == "HIT-L2"
            assert upstream(sim) == before
            old = where.running()[0]
            scene = Scene(sim, old, None, [gate], None, 1)
            async with scene.traffic() as pulse:
                await pulse.used("in use", 60)
                old.kill()
                pulse.begin("failover")
                await asyncio.to_thread(where.failed_over, old)
                await pulse.used("in use again", 60)
