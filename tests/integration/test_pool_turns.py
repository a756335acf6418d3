"""Several models on a GPU that holds one: a real gateway, real processes, and one GPU by configuration."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec

from ..support.gateway import Gateway, gateway
from ..support.procs import console_script, wait_until

GIB = 1 << 30


def model(*args: str, memory: int | None = GIB, **pool: Any) -> dict[str, Any]:
    """A model that is served by a simulator of its own."""
    command = [console_script(), "sim", "--port", "{port}", "--model", "{model}", *args]
    size = {} if memory is None else {"memory": memory}
    terms = {"idle_timeout_s": 300, "stop_timeout_s": 10, **size, **pool}
    return {"pool": {"provider": "process", "command": command, **terms}}


def config(*gpus: int, max_wait_s: float = 60, **models: Any) -> dict[str, Any]:
    """Models on these GPUs."""
    return {
        "pools": {"gpus": [{"memory": size} for size in gpus], "max_wait_s": max_wait_s},
        "models": models,
    }


async def ask(client: httpx.AsyncClient, name: str, words: str = "one two") -> httpx.Response:
    body = {"model": name, "max_tokens": 4, "messages": [{"role": "user", "content": words}]}
    return await client.post("/v1/chat/completions", json=body)


def client_of(running: Gateway) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=200)
    return httpx.AsyncClient(base_url=running.url, timeout=90, trust_env=False, limits=limits)


def starts(running: Gateway) -> list[str]:
    """The models whose servers were started, in order."""
    return re.findall(r"pool_phase pool=(\w+) from=\w+ to=starting", running.log())


async def test_three_models_take_turns_on_one_gpu():
    names = ["a", "b", "c"]
    with gateway(config(GIB, max_wait_s=12, **{name: model() for name in names})) as running:
        async with client_of(running) as client:

            async def caller(name: str, number: int) -> list[httpx.Response]:
                return [await ask(client, name, f"{name} {number} {i}") for i in range(12)]

            callers = [caller(name, number) for number in range(2) for name in names]
            answers = [one for some in await asyncio.gather(*callers) for one in some]
        assert Counter(one.status_code for one in answers) == {200: len(answers)}
        order = starts(running)
        assert set(order) == set(names)
        # one after the other, the requests would change the model each time
        assert len(order) - 1 <= (len(answers) - 1) / 3, order
        assert all(first != second for first, second in pairwise(order)), "nobody left for itself"
        assert running.metric("penstock_pool_switches_total") == len(order) - 1
        assert running.metric("penstock_pool_evictions_total") >= len(order) - 1
        assert running.metric("penstock_gpu_memory_reserved_bytes", gpu="0") == GIB
        assert running.metric("penstock_gpu_memory_bytes", gpu="0") == GIB


async def test_two_that_fit_together_run_together():
    with gateway(config(2 * GIB, a=model(), b=model())) as running:
        async with client_of(running) as client:
            for name in ("a", "b", "a", "b"):
                assert (await ask(client, name)).status_code == 200
        assert starts(running) == ["a", "b"]
        assert running.metric("penstock_gpu_memory_reserved_bytes", gpu="0") == 2 * GIB


async def test_each_server_is_told_its_gpu_and_one_that_nobody_knows_takes_a_whole_one(tmp_path: Path):
    told = tmp_path / "told"
    code = (
        "import os,sys,subprocess;"
        f"open({str(told)!r},'a').write(sys.argv[1]+os.environ['CUDA_VISIBLE_DEVICES']+' ');"
        "os.execv(sys.argv[2],sys.argv[2:])"
    )
    one = model(memory=None)
    one["pool"]["command"] = [sys.executable, "-c", code, "{model}", *one["pool"]["command"]]
    with gateway(config(GIB, GIB, a=one, b=one, c=one)) as running:
        async with client_of(running) as client:
            for name in ("a", "b", "c"):
                assert (await ask(client, name)).status_code == 200
        assert told.read_text().split() == ["a0", "b1", "c0"], "the one that was used least recently went"


async def test_a_model_that_can_never_fit_fails_at_once_and_says_why():
    with gateway(config(GIB, b=model(pinned=True), c=model())) as running:
        async with client_of(running) as client:
            assert (await ask(client, "b")).status_code == 200
            shut_out = await ask(client, "c")
            assert shut_out.status_code == 503
            assert "b always runs" in shut_out.json()["error"]["message"]
        assert starts(running)[-1:] != ["c"] or "to=failed" in running.log()


async def test_how_long_starts_take_is_known_after_a_restart():
    with gateway(config(GIB, a=model(), b=model())) as running:
        folder = running.file.parent / "state"
        async with client_of(running) as client:
            for name in ("a", "b"):
                assert (await ask(client, name)).status_code == 200

        def kept() -> dict[str, Any]:
            (file,) = folder.rglob("footprints.json")
            found: dict[str, Any] = msgspec.json.decode(file.read_bytes())["pools"]
            return {key.partition("\n")[0]: entry for key, entry in found.items()}

        wait_until(lambda: len(kept().get("b", {}).get("start", ())) == 1, 20, "b's start is kept")
        before = kept()
        assert len(before["a"]["start"]) == len(before["a"]["stop"]) == 1
        controller = running.controller_pid()
        assert controller is not None
        os.kill(controller, signal.SIGKILL)
        wait_until(lambda: running.controller_pid() not in (None, controller), 20, "another controller")
        async with client_of(running) as client:
            assert (await ask(client, "a")).status_code == 200
        assert len(starts(running)) == 3
        wait_until(lambda: len(kept()["a"]["start"]) == 2, 20, "a's second start is kept beside the first")
