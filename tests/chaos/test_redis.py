"""Redis stopped, paused, full, slow and replaced under load: no request notices but for its time."""

import asyncio
import json
import re
import tempfile
import time
from collections.abc import Callable

import httpx
import pytest

from ..support.asking import Question, ask
from ..support.gateway import gateway, one_model
from ..support.l2 import place
from ..support.leaks import nothing_left
from ..support.outage import Scene, scene
from ..support.procs import console_script, run, wait_until
from ..support.redis import RedisServer, redis_server
from ..support.sim import simulator

COUNT = 400
FLUSHES = 5
CLIENTS = 4
L1 = {"size": 0}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "paused", "slow", "full", "cut off"])
async def test_an_outage_of_redis_costs_no_request(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with scene(workers=2, l1=L1, off=True, relayed=how in ("slow", "cut off")) as set_up:
        redis, line = set_up.redis, set_up.line

        def late(delay_s: float) -> None:
            line.delay_s = delay_s

        begin, end = {
            "stopped": (redis.stop, redis.start),
            "paused": (redis.pause, redis.resume),
            "slow": (lambda: late(0.03), lambda: late(0.0)),
            "full": (lambda: redis.configure(maxmemory="1mb"), lambda: redis.configure(maxmemory="0")),
            "cut off": (lambda: (redis.pause(), line.cut()), redis.resume),
        }[how]
        async with set_up.traffic(CLIENTS) as pulse:
            await pulse.outage(begin, end, count=COUNT, said="l2_full" if how == "full" else "l2_down")
        await _left(set_up)
        with capsys.disabled():
            print(f"\nRedis {how}: {dict(set_up.controllers())}\n{pulse.table()}")


@pytest.mark.slow
async def test_an_empty_redis_in_place_of_the_old_one_costs_no_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with scene(workers=2, l1=L1, off=True) as set_up:
        async with set_up.traffic(CLIENTS) as pulse:
            await set_up.in_use()
            await pulse.used("in use", COUNT)
            pulse.begin("replaced")
            await asyncio.to_thread(set_up.redis.restart)
            await pulse.used("the empty one in use", COUNT)
            # it is back so soon that a worker may not have noticed
            await asyncio.to_thread(wait_until, lambda: _closed(set_up), 60, "nobody says it is down")
            assert set(map(tuple, set_up.lines())) <= {(), ("l2_down", "l2_up")}
        await _left(set_up)
        with capsys.disabled():
            print(f"\nRedis replaced: {set_up.lines()}\n{pulse.table()}")


async def _left(set_up: Scene) -> None:
    """Nothing, in any gateway."""
    for gate in (*set_up.nodes, *([set_up.off] if set_up.off is not None else [])):
        await asyncio.to_thread(nothing_left, gate)


def _closed(set_up: Scene) -> bool:
    return all(lines[-1:] != ["l2_down"] for lines in set_up.lines())


@pytest.mark.slow
async def test_a_gateway_that_starts_without_redis_answers_and_uses_it_when_it_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with redis_server() as redis, simulator(model="m", created=1, decode_ms=1) as sim:
        redis.stop()
        base = one_model(sim.url, max_concurrent=200)
        cached = {**base, "cache": {"l1": L1, "l2": {"url": redis.url}}}
        with gateway(cached) as gate, gateway(base) as off:
            set_up = Scene(sim, redis, None, [gate], off, 1)
            async with set_up.traffic(CLIENTS) as pulse:
                await set_up.all_say("l2_down")
                await pulse.through("not there", COUNT)
                pulse.begin("until it is used")
                await asyncio.to_thread(redis.start)
                await set_up.all_say("l2_down", "l2_up")
                await pulse.used("in use", COUNT)
                await set_up.all_say("l2_down", "l2_up")
            await _left(set_up)
            with capsys.disabled():
                print(f"\nNo Redis at the start\n{pulse.table()}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
@pytest.mark.parametrize("fault", [RedisServer.kill, RedisServer.pause], ids=["killed", "paused"])
async def test_a_failover_costs_no_request(
    kind: str, fault: Callable[[RedisServer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with place(kind) as where, simulator(model="m", created=1, decode_ms=1) as sim:
        to = where.settings
        l2 = {"url": to.url, "topology": to.topology, "nodes": list(to.nodes)}
        base = {**one_model(sim.url, max_concurrent=200), "workers": {"count": 2}}
        with gateway({**base, "cache": {"l1": L1, "l2": l2}}) as gate, gateway(base) as off:
            old = where.running()[0]
            set_up = Scene(sim, old, None, [gate], off, 2)
            async with set_up.traffic(CLIENTS) as pulse:
                await set_up.in_use()
                await pulse.used("in use", COUNT)
                pulse.begin("failover")
                began = time.monotonic()
                await asyncio.to_thread(fault, old)
                await set_up.all_say("l2_down")
                await asyncio.to_thread(where.failed_over, old)
                over_s = time.monotonic() - began
                pulse.begin("until it is used again")
                await set_up.all_say("l2_down", "l2_up")
                again_s = time.monotonic() - began
                await set_up.in_use()
                await pulse.used("in use again", COUNT)
                await set_up.all_say("l2_down", "l2_up")
            await _left(set_up)
            with capsys.disabled():
                print(
                    f"\n{kind}: another master after {over_s:.1f} s, used by all workers after {again_s:.1f} s, "
                    f"{dict(set_up.controllers())}\n{pulse.table()}"
                )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["all", "model", "tenant", "key"])
@pytest.mark.parametrize("told", [True, False], ids=["message", "message lost"])
async def test_how_long_a_flush_takes_to_another_node(
    what: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with simulator(model="m", created=1) as sim, redis_server() as redis:
        redis.command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "&*", "+@all", "-publish")
        l2 = {"url": redis.url, "deadline_ms": 1000}
        mute = l2 if told else {**l2, "username": "mute", "password_env": "TEST_REDIS_PASSWORD"}
        one, two = ({**one_model(sim.url), "cache": {"l2": of}} for of in (mute, l2))
        with gateway(one, env={"TEST_REDIS_PASSWORD": "-"}) as here, gateway(two) as there:
            scene = Scene(sim, redis, None, [here, there], None, 1)
            await scene.in_use()
            times = []
            for number in range(FLUSHES):
                question = Question(f"flushed {what} {number}")
                for gate in (here, there):
                    while (await ask(gate.port, question)).cache != "HIT-L1":
                        pass
                value: object = {"all": True, "model": "m", "tenant": "default"}.get(what)
                if value is None:
                    value = await asyncio.to_thread(_key_of, question)
                async with httpx.AsyncClient(trust_env=False) as client:
                    began = time.monotonic()
                    said = await client.post(f"{here.admin_url}/gateway/cache/flush", json={what: value})
                assert said.json()["this_node"] == "flushed"
                while (await ask(there.port, question)).cache == "HIT-L1":
                    pass
                times.append(time.monotonic() - began)
            with capsys.disabled():
                print(
                    f"\nflush by {what}, {'message' if told else 'message lost'}: seen after "
                    + ", ".join(f"{1000 * t:.0f}" for t in times)
                    + " ms"
                )


def _key_of(question: Question) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(question.body, file)
        file.flush()
        _, said = run([console_script(), "cache", "explain", file.name])
    found = re.search(r"^key +([0-9a-f]{64})$", said, re.M)
    assert found, said
    return found[1]
