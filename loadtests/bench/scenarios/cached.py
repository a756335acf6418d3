"""What answers from the cache cost: from shared memory, from Redis, and what looking and keeping adds to a miss."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..context import Rig
from ..rig import client, payload
from ..rig.exposition import Exposition
from ..rig.process import Child, RigError, answers, free_port
from ..rig.wrk import KEY
from ..subjects import REQUESTS, Echo, Gateway

KEYS = 10_000
_FILLERS = 32
L1_SIZE = "1GiB"
_L1 = {"size": L1_SIZE}


def hit(rig: Rig) -> None:
    """Answers of 0.6, 8 and 64 KB from shared memory, drawn from 10,000 keys that another process wrote."""
    with backends_of_sizes(rig) as ports:
        gateway = _gateway(rig, "gateway", ports, {"l1": _L1})
        echo = Echo(rig.folder, rig.core)
        try:
            for model in payload.SIZED:
                fill_with(gateway, model)
            gateway.renew_workers()  # none of those that answer has stored anything
            for model in payload.SIZED:
                rig.alternate(f"hit {model}", [echo, gateway], body_of_keys(model), model, keys=KEYS)
            all_were(rig, gateway, "HIT-L1", "hit")
        finally:
            echo.stop()
            gateway.stop()
    book = rig.book
    for model in payload.SIZED:
        name = f"hit {model}"
        book.at_least(f"{name} / echo of that size", book.ratio(name, "gateway", "echo"), 0.70)
        book.at_most(f"{name}: p95 ms", book.median(name, "gateway", "p95_us") / 1000, 5.0)
        book.at_most(f"{name}: p99 ms", book.median(name, "gateway", "p99_us") / 1000, 8.0)


def far(rig: Rig) -> None:
    """Answers of 0.6 KB from Redis, without shared memory before it."""
    model = next(iter(payload.SIZED))
    with backends_of_sizes(rig) as ports, _redis(rig) as url:
        gateway = _gateway(rig, "gateway", ports, {"l1": {"size": 0}, "l2": {"url": url}})
        echo = Echo(rig.folder, rig.core)
        try:
            fill_with(gateway, model)
            rig.alternate("far", [echo, gateway], body_of_keys(model), model, keys=KEYS)
            all_were(rig, gateway, "HIT-L2", "far")
        finally:
            echo.stop()
            gateway.stop()
    rig.book.at_least("hit in Redis / echo", rig.book.ratio("far", "gateway", "echo"), 0.25)


def fill(rig: Rig) -> None:
    """Plain requests, each new to the cache: looked up, asked upstream, kept."""
    body = body_of_keys(payload.MODEL)
    with _redis(rig) as url:
        layers: dict[str, dict[str, object]] = {
            "off": {"mode": "off"},
            "l1": {"l1": _L1},
            "l1 and l2": {"l1": _L1, "l2": {"url": url}},
        }
        for name, cache in layers.items():  # one at a time: those that wait would still tick on the same core
            gateway, echo = _gateway(rig, "gateway", rig.backends, cache), Echo(rig.folder, rig.core)
            try:
                rig.alternate(f"fill, {name}", [echo, gateway], body, payload.MODEL, keys=0)
                if name != "off":
                    all_were(rig, gateway, "MISS", "fill")
            finally:
                echo.stop()
                gateway.stop()
    book = rig.book
    book.at_least("cacheable miss with L1 / echo", book.ratio("fill, l1", "gateway", "echo"), 0.42)
    book.at_least(
        "cacheable miss with L1 and L2 / echo", book.ratio("fill, l1 and l2", "gateway", "echo"), 0.34
    )


def body_of_keys(model: str) -> bytes:
    """A request that may be cached, with a place for the key."""
    return payload.chat_body(model, temperature=0, stop=KEY)


def _gateway(rig: Rig, name: str, ports: dict[str, int], cache: dict[str, object]) -> Gateway:
    return Gateway(rig.folder, ports, cores=[rig.core], machine=rig.machine, name=name, more={"cache": cache})


@contextmanager
def backends_of_sizes(rig: Rig) -> Iterator[dict[str, int]]:
    """The backends that fill the cache: port by model."""
    ports = {model: free_port() for model in payload.SIZED}
    argv = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.rig.sized"]
    for model, port in ports.items():
        argv += ["--port", f"{model}={port}"]
    child = Child("sized", argv, rig.folder / "sized.log", cores=rig.load_cores)
    try:
        child.until(lambda: all(map(answers, ports.values())), "listening")
        yield ports
    finally:
        child.stop()


@contextmanager
def _redis(rig: Rig) -> Iterator[str]:
    """A Redis of its own that keeps nothing on disk; its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise RigError("redis-server is not installed: apt-get install redis-server")
    port = free_port()
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    child = Child("redis", [*argv, "--dir", str(rig.folder)], rig.folder / "redis.log", cores=rig.load_cores)
    try:
        child.until(lambda: "Ready to accept connections" in child.tail(), "ready")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        child.stop()


def fill_with(gateway: Gateway, model: str, *, bearer: str = "") -> None:
    """Ask every question once."""
    url, (before, after) = gateway.url(model), body_of_keys(model).decode().split(KEY)

    async def some(numbers: range) -> None:
        connection = await client.connect(url)
        try:
            for number in numbers:
                body = f"{before}{number}{after}".encode()
                reply = await connection.ask(client.request(url, body, bearer))
                if reply.status != 200:
                    raise RigError(f"key {number}: status {reply.status}")
        finally:
            connection.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(some(range(first, KEYS, _FILLERS)) for first in range(_FILLERS)))

    asyncio.run(all_of_them())


def all_were(
    rig: Rig, gateway: Gateway, outcome: str, scenario: str, *, since: Exposition | None = None
) -> None:
    """A figure of something else would be worth nothing: by far the most answers must have been this."""
    page = gateway.metrics()
    found, whole = page.total(REQUESTS, f'cache="{outcome}"'), page.total(REQUESTS)
    if since is not None:
        found -= since.total(REQUESTS, f'cache="{outcome}"')
        whole -= since.total(REQUESTS)
    if found < 0.95 * whole - 4 * KEYS:
        rig.book.faults.append(f"{scenario}: only {found:.0f} of {whole:.0f} answers were {outcome}")
