"""Something happens to Redis while clients ask a gateway, and, for comparison, one whose cache is off."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from .asking import Traffic, table
from .gateway import Gateway, gateway, one_model
from .procs import wait_until
from .redis import RedisServer, redis_server
from .sim import Simulator, simulator
from .slow_line import SlowLine, slow_line

WATCHDOG_S = 60.0
_LINE = re.compile(r"^\S+ ([A-Z]+) (\S+?)\[(\d+)\] \S+: (\w+)", re.M)
_STATES = ("l2_down", "l2_full", "l2_up")
_WARNINGS = {"l2_down", "l2_full", "epochs_lost", "l2_noeviction"}


@dataclass
class Scene:
    """`nodes` share `redis`, which they may reach over `line`; `off` is a gateway without a cache."""

    sim: Simulator
    redis: RedisServer
    line: SlowLine | None
    nodes: list[Gateway]
    off: Gateway | None
    workers: int

    def lines(self) -> list[list[str]]:
        """What each worker said of the state of Redis, in order."""
        said: dict[tuple[int, str], list[str]] = {}
        for number, node in enumerate(self.nodes):
            for pid in node.worker_pids():
                said[number, str(pid)] = []
            for _, _, pid, event in _LINE.findall(node.log()):
                if event in _STATES:
                    said.setdefault((number, pid), []).append(event)
        return list(said.values())

    def strangers(self) -> list[str]:
        """Lines of level WARNING or above that say anything else."""
        return [
            line
            for node in self.nodes
            for line in node.log().splitlines()
            if (found := _LINE.match(line))
            and found[1] not in ("INFO", "DEBUG")
            and found[4] not in _WARNINGS
        ]

    def controllers(self) -> Counter[str]:
        """How often controllers said that they are in step with Redis, and that they are not."""
        said = [found[3] for node in self.nodes for found in _LINE.findall(node.log())]
        return Counter(event for event in said if event.startswith("epochs_"))

    async def all_say(self, *lines: str) -> None:
        """Wait until every worker has said just so much."""

        def said() -> bool:
            now = self.lines()
            assert all(len(of) <= len(lines) for of in now), f"more than {lines}: {now}"
            return all(of == list(lines) for of in now)

        await asyncio.to_thread(wait_until, said, WATCHDOG_S, f"{lines} of every worker")

    async def in_use(self) -> None:
        """Wait until every node is in step with Redis."""
        for node in self.nodes:
            await asyncio.to_thread(
                wait_until, lambda node=node: _in_step(node), WATCHDOG_S, "in step with Redis"
            )

    @asynccontextmanager
    async def traffic(self, clients: int = 4, **options: Any) -> AsyncIterator["Pulse"]:
        """Both kinds of gateway are asked until the block's end; then every answer was right."""
        asking = Traffic([node.port for node in self.nodes], **options)
        plain = Traffic([self.off.port], seed=2, **options) if self.off else None
        pulse = Pulse(self, asking, plain)
        async with asking.running(clients):
            if plain is None:
                yield pulse
            else:
                async with plain.running(clients):
                    yield pulse
        assert asking.wrong == []
        assert plain is None or plain.wrong == []
        assert self.strangers() == []


@dataclass
class Pulse:
    """The traffic of a scene."""

    scene: Scene
    asking: Traffic
    off: Traffic | None
    said: list[str] = field(default_factory=list)

    def begin(self, phase: str) -> None:
        for one in (self.asking, self.off):
            if one is not None:
                one.begin(phase)

    async def through(self, phase: str, count: int) -> None:
        """A phase of so many answers."""
        self.begin(phase)
        await self.asking.more(count)

    async def used(self, phase: str, count: int) -> None:
        """A phase in which Redis is used: it ends after so many answers, some of which came from there."""
        self.begin(phase)
        await self.asking.sees("HIT-L2", 10)
        await self.asking.more(count)

    async def outage(
        self,
        begin: Callable[[], object],
        end: Callable[[], object],
        *,
        count: int,
        said: str = "l2_down",
    ) -> None:
        """Use, an outage that is noticed, its end, use again; every worker says so in one line each.

        What was said in outages before counts too.
        """
        await self.scene.in_use()
        await self.used("in use", count)
        self.begin("until it is noticed")
        await asyncio.to_thread(begin)
        self.said.append(said)
        await self.scene.all_say(*self.said)
        await self.through("outage", count)
        self.begin("until it is used again")
        await asyncio.to_thread(end)
        self.said.append("l2_up")
        await self.scene.all_say(*self.said)
        await self.scene.in_use()
        await self.used("in use again", count)
        await self.scene.all_say(*self.said)

    def table(self) -> str:
        """Its phases, for people."""
        columns = {"cache": self.asking.phases[1:]}
        if self.off is not None:
            columns["cache off"] = self.off.phases[1:]
        return table(columns)


def _in_step(node: Gateway) -> bool:
    said = httpx.get(f"{node.admin_url}/gateway/cache/stats", trust_env=False, timeout=20)
    return bool(said.json()["l2"]["synced"])


@contextmanager
def scene(
    *,
    nodes: int = 1,
    workers: int = 1,
    l1: dict[str, Any],
    off: bool = False,
    relayed: bool = False,
    **l2: Any,
) -> Iterator[Scene]:
    """So many gateways on one Redis (`l2`: further keys of `cache.l2`), `off`: and one without a cache.

    relayed: they reach Redis over `Scene.line`.
    """
    with (
        simulator(model="m", created=1, decode_ms=1) as sim,
        redis_server(maxmemory_policy="noeviction") as redis,
        slow_line(redis.port) as line,
    ):
        url = f"redis://127.0.0.1:{line.port}/0" if relayed else redis.url
        base = {**one_model(sim.url, max_concurrent=200), "workers": {"count": workers}}
        cached = {**base, "cache": {"l1": l1, "l2": {"url": url, **l2}}}
        with _all([cached] * nodes) as made, _all([base] if off else []) as plain:
            yield Scene(sim, redis, line, made, plain[0] if plain else None, workers)


@contextmanager
def _all(configs: list[dict[str, Any]]) -> Iterator[list[Gateway]]:
    if not configs:
        yield []
        return
    with gateway(configs[0]) as first, _all(configs[1:]) as rest:
        yield [first, *rest]
