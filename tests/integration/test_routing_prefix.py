"""Conversations of several turns: their servers hold what was said, and none is overloaded for it."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.scripted import until
from ..support.sim import Simulator, simulator

TALKS = 48
TURNS = 6
SYSTEM = (
    "You are an engineer of hydropower stations and answer in few words. " * 40
)  # longer than prefix_chars


@pytest.fixture(scope="module")
def sims() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(simulator(prefill_tps=200_000, decode_ms=6, max_seqs=64)) for _ in range(4)
        ]


@pytest.fixture(scope="module")
def gate(sims: list[Simulator]) -> Iterator[Gateway]:
    backends = [{"url": sim.url} for sim in sims]
    models = {
        policy: {"backends": backends, "policy": policy, "max_concurrent": 200}
        for policy in ("prefix_affinity", "weighted_round_robin")
    }
    with gateway(
        {
            "models": models,
            "workers": {"count": 2, "drain_delay_s": 0},
            "health": {"interval_s": 600, "slow_start_s": 0},
        }
    ) as made:
        yield made


async def _talk(gate: Gateway, policy: str, at_once: int) -> float:
    """The share of turns after the first that reached a server that had one of the turns before."""
    met = 0
    rng = random.Random(policy)
    places = asyncio.Semaphore(at_once)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal met
        # `policy` in it: what one model's servers hold is nothing to the other
        said: list[dict[str, str]] = [
            {"role": "system", "content": f"{policy} {SYSTEM}"},
            {"role": "user", "content": f"Station {number} has {rng.random()} m³/s. " + "What of it? " * 20},
        ]
        held: set[str] = set()
        for _ in range(TURNS):
            async with places:
                body: dict[str, Any] = {"model": policy, "messages": said, "max_tokens": 8}
                answer = await client.post(f"{gate.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            met += answer.headers["x-penstock-backend"] in held
            held.add(answer.headers["x-penstock-backend"])
            said.append(answer.json()["choices"][0]["message"])
            said.append({"role": "user", "content": "And then? " * 20})

    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(TALKS)))
    return met / (TALKS * (TURNS - 1))


def _prefix(sims: list[Simulator]) -> tuple[int, int]:
    engines = [sim.stats()["engine"] for sim in sims]
    return sum(e["prefix_hits"] for e in engines), sum(e["prefix_queries"] for e in engines)


async def test_nine_turns_of_ten_reach_a_server_that_holds_the_prefix(
    gate: Gateway, sims: list[Simulator], capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {}
    met = {}
    for policy in ("weighted_round_robin", "prefix_affinity"):
        before = _prefix(sims)
        met[policy] = await _talk(gate, policy, at_once=12)
        after = _prefix(sims)
        rates[policy] = (after[0] - before[0]) / (after[1] - before[1])
    with capsys.disabled():
        for policy, rate in rates.items():
            print(
                f"\n{policy}: {met[policy]:.0%} of turns met their prefix, {rate:.0%} of tokens cached",
                end="",
            )
    assert met["prefix_affinity"] >= 0.9, met
    assert rates["prefix_affinity"] > rates["weighted_round_robin"]


async def test_at_high_load_no_server_has_more_than_five_quarters_of_the_mean(
    gate: Gateway, sims: list[Simulator]
) -> None:
    """120 at once, of which a quarter are of one conversation and an eighth of another."""
    for sim in sims:
        sim.faults({"kind": "hang"})
    texts = ["one" if n % 4 == 1 else "other" if n % 8 == 3 else f"{n}" for n in range(120)]
    bodies = [{"model": "prefix_affinity", "messages": [{"role": "user", "content": text}]} for text in texts]
    async with httpx.AsyncClient(
        trust_env=False, timeout=60, limits=httpx.Limits(max_connections=130)
    ) as client:
        asked = [
            asyncio.create_task(client.post(f"{gate.url}/v1/chat/completions", json=body)) for body in bodies
        ]

        def in_flight() -> list[int]:
            return [sim.stats()["in_flight"] for sim in sims]

        await until(lambda: sum(in_flight()) == len(bodies))
        held = in_flight()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for sim in sims:
            sim.faults({})
        await until(lambda: not sum(in_flight()))
    # the other worker may have chosen at the same moment
    assert max(held) <= 1.25 * len(bodies) / len(sims) + 1, held
