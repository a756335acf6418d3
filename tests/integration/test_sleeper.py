"""vLLM's sleep levels against the simulator, which has them as vLLM does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from penstock.gateway.config import Backend
from penstock.workers.pools.providers.base import ProviderFault
from penstock.workers.pools.sleeper import Sleeper
from penstock.workers.target import Target, TargetKey
from tests.support.procs import wait_until
from tests.support.sim import Simulator, simulator

ASKED = {"prompt": "x", "max_tokens": 8}


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with simulator("--decode-ms", "1") as sim:
        yield sim


@asynccontextmanager
async def sleeper_for(url: str, **environ: str) -> AsyncIterator[Sleeper]:
    backend = Backend(url=url, api_key_env="KEY" if environ else None)
    target = Target(TargetKey(url, backend.api_key_env, None, None), backend, environ)
    try:
        yield Sleeper(target)
    finally:
        await target.close()


async def text(sim: Simulator) -> str:
    async with httpx.AsyncClient(base_url=sim.url, timeout=30, trust_env=False) as http:
        answer = await http.post("/v1/completions", json=ASKED)
        said: str = answer.json()["choices"][0]["text"]
        return said


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


@pytest.mark.parametrize("level", [1, 2])
async def test_a_server_that_slept_answers_as_before(sim: Simulator, level: int):
    said = await text(sim)
    async with sleeper_for(sim.url) as sleeper:
        assert await sleeper.is_sleeping() is False
        await sleeper.sleep(level, 30)
        assert await sleeper.is_sleeping() is True
        late = asyncio.ensure_future(text(sim))
        await until(lambda: sim.stats()["engine"]["waiting"] == 1)
        await sleeper.wake(level, 30)
        assert await late == said
        assert await sleeper.is_sleeping() is False
    assert sim.stats()["sleep"]["reloads"] == (1 if level == 2 else 0)


async def test_a_wake_from_level_1_takes_a_tenth_of_a_cold_start_and_one_from_level_2_loads_the_weights():
    # the proportions of an 8 B model: its process and compilation, its weights from a disk, its weights from memory
    with simulator("--startup-s", "0.5", "--reload-s", "0.2", "--wake-s", "0.05") as sim:
        async with sleeper_for(sim.url) as sleeper:
            await sleeper.sleep(1, 30)
            await sleeper.wake(1, 30)
            first = sim.stats()["sleep"]
            assert (first["wakes"], first["reloads"]) == (1, 0)
            assert first["waking_s"] <= first["startup_s"] / 10
            await sleeper.sleep(2, 30)
            await sleeper.wake(2, 30)
            second = sim.stats()["sleep"]
            assert (second["wakes"], second["reloads"]) == (2, 1)
            assert second["waking_s"] - first["waking_s"] == pytest.approx(0.2)


async def test_asleep_and_awake_twice_over_is_harmless(sim: Simulator):
    async with sleeper_for(sim.url) as sleeper:
        for level in (1, 2):
            await sleeper.sleep(level, 30)
            await sleeper.sleep(level, 30)
            await sleeper.wake(level, 30)
            await sleeper.wake(level, 30)
    assert await text(sim) != "!" * 8


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_wake_from_level_2_that_was_left_half_way_is_begun_again(sim: Simulator, steps: int):
    """Whoever did it was killed between two steps; the server says that it sleeps until the last one is done."""
    said = await text(sim)
    async with sleeper_for(sim.url) as sleeper:
        await sleeper.sleep(2, 30)
        async with httpx.AsyncClient(base_url=sim.url, trust_env=False) as http:
            done: list[tuple[str, Any]] = [
                ("/wake_up?tags=weights", None),
                ("/collective_rpc", {"method": "reload_weights"}),
            ]
            for path, body in done[:steps]:
                assert (await http.post(path, json=body)).status_code == 200
        assert await sleeper.is_sleeping() is True
        await sleeper.wake(2, 30)
    assert await text(sim) == said


async def test_what_runs_comes_to_its_end_before_the_server_sleeps(sim: Simulator):
    async with sleeper_for(sim.url) as sleeper, httpx.AsyncClient(base_url=sim.url, trust_env=False) as http:
        body = {"prompt": "y", "max_tokens": 300, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            sleeping = asyncio.ensure_future(sleeper.sleep(1, 30))
            rest = "".join([line async for line in lines])
        await sleeping
    assert '"finish_reason":"length"' in rest


@pytest.mark.parametrize(
    ("level", "fault"),
    [(1, "wake_fails"), (2, "wake_fails"), (2, "reload_fails")],
    ids=["wake-1", "wake-2", "reload"],
)
@pytest.mark.parametrize("how", ["error", "hangs", "dies", "lies"])
async def test_a_wake_that_fails_says_why(sim: Simulator, level: int, fault: str, how: str):
    async with sleeper_for(sim.url) as sleeper:
        await sleeper.sleep(level, 30)
        sim.faults({"kind": fault, "how": how})
        if (fault, how) == ("reload_fails", "lies"):
            pytest.skip("nothing tells that from a reload")
        words = {
            "error": r"/(wake_up|collective_rpc) answered 500: EngineCore encountered an issue\.",
            "lies": "the server was woken, and sleeps on",
            "hangs": r"/(wake_up|collective_rpc) did not answer in time",
            "dies": r"/(wake_up|collective_rpc): ",
        }[how]
        if (level, how) == (2, "lies"):
            words = "/collective_rpc answered 500: CUDA error"  # weights without memory to go to
        with pytest.raises(ProviderFault, match=words) as raised:
            await sleeper.wake(level, 0.5 if how == "hangs" else 30)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("error", r"/sleep answered 500: EngineCore encountered an issue\."),
        ("lies", "the server was told to sleep, and does not"),
        ("hangs", "/sleep did not answer in time"),
        ("dies", "/sleep: "),
    ],
)
async def test_a_sleep_that_fails_says_why(sim: Simulator, how: str, words: str):
    async with sleeper_for(sim.url) as sleeper:
        sim.faults({"kind": "sleep_fails", "how": how})
        with pytest.raises(ProviderFault, match=words):
            await sleeper.sleep(1, 0.5 if how == "hangs" else 30)


async def test_without_the_development_mode_the_reason_names_it_and_the_server_is_awake():
    with simulator("--no-dev-mode") as sim:
        async with sleeper_for(sim.url) as sleeper:
            with pytest.raises(
                ProviderFault, match="the server has no /sleep: vLLM needs VLLM_SERVER_DEV_MODE=1"
            ):
                await sleeper.sleep(1, 30)
            assert await sleeper.is_sleeping() is False


async def test_the_servers_key_is_sent(sim: Simulator):
    async with sleeper_for(sim.url, KEY="sesame") as sleeper:
        await sleeper.is_sleeping()
    (seen,) = [one for one in sim.stats()["recent"] if one["target"] == "/is_sleeping"]
    assert dict(seen["headers"])["authorization"] == "Bearer sesame"


async def test_what_says_nothing_sensible_is_not_asleep_and_not_awake(sim: Simulator):
    sim.faults({"kind": "status", "path": "/is_sleeping", "status": 200, "body": '{"is_sleeping": "yes"}'})
    async with sleeper_for(sim.url) as sleeper:
        with pytest.raises(ProviderFault, match="/is_sleeping did not say whether the server does"):
            await sleeper.is_sleeping()
