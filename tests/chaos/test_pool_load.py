"""A pool of several servers under a load that rises and falls, and a stream that takes longer than every timer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.integration.test_waking import crowd
from tests.support.gateway import gateway
from tests.support.pool_gateway import chat, phases, pool, pooled, simulator, wait_phase
from tests.support.procs import wait_until

from .paced import Paced


def _ready(members: list[dict[str, object]]) -> int:
    return sum(one["phase"] == "ready" for one in members)


@pytest.mark.slow
async def test_a_pool_of_three_follows_the_load_up_and_down_and_no_request_is_lost() -> None:
    """One server takes 4 requests at a time and about 8 a second; 3 are wanted at 20 a second, one at 2."""
    terms = {"max": 3, "idle_timeout_s": 8, "settings": {"max_concurrent": 4, "max_queue": 5000}}
    command = simulator("--decode-ms", "60", "--max-seqs", "4")
    with gateway(pooled(command, **terms)) as g:
        counts: list[int] = []
        paced: list[Paced] = []

        async def members() -> int:
            counts.append(_ready((await asyncio.to_thread(pool, g)).get("members", [])))
            return counts[-1]

        async def ask_at(rate: float, wanted: int, within_s: float) -> None:
            stop, load = asyncio.Event(), Paced(g.port, "m", rate)
            paced.append(load)
            asking = asyncio.create_task(load.run(stop))
            for _ in range(int(within_s / 0.5)):
                if await members() == wanted:
                    break
                await asyncio.sleep(0.5)
            stop.set()
            await asking

        await ask_at(20, 3, 90)
        assert counts[-1] == 3
        await ask_at(2, 1, 120)
        assert counts[-1] == 1
        statuses = sum((one.statuses() for one in paced), start=type(paced[0].statuses())())
        print(f"\nready members seen: {sorted(set(counts))}, answers {dict(statuses)}")
        assert set(statuses) == {200}
        assert statuses[200] == sum(one.asked for one in paced)
        wait_phase(g, "off", timeout_s=60)


def _outlives(seconds: float, idle_timeout_s: float) -> None:
    step_s = 0.5
    steps = int(seconds / step_s)
    command = simulator("--decode-ms", str(int(step_s * 1000)))
    with gateway(pooled(command, idle_timeout_s=idle_timeout_s)) as g:
        body = {**chat(tokens=steps, stream=True), "ignore_eos": True}
        url = f"{g.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
            assert answer.status_code == 200
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) > steps
        wait_phase(g, "off")
        wait_until(lambda: phases(g)[-1] == "off")
        assert phases(g) == ["off", "starting", "ready", "draining", "stopping", "off"]


@pytest.mark.slow
def test_a_stream_outlives_the_idle_timeout_many_times_over() -> None:
    _outlives(12, 0.5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_stream_of_ten_minutes_outlives_every_timer() -> None:
    _outlives(600, 5)


@pytest.mark.slow
def test_a_thousand_at_once_for_a_pool_at_zero_are_all_answered_after_one_start(tmp_path: Path) -> None:
    crowd(tmp_path, 200)
