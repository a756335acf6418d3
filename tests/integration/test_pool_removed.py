"""A `webhook` pool that two nodes share is removed from their configuration: real runners, a real Redis, a receiver."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.pool_table import PoolPhase
from penstock.cache.redis_client import RedisSettings
from penstock.cache.segment import Segment
from penstock.gateway.config import Backend, Config, Health, Model
from penstock.gateway.config.pool import KubernetesApi, KubernetesPool, Pools, ProcessPool, Scale, WebhookPool
from penstock.workers.pools.lease_redis import RedisLeases
from penstock.workers.pools.nodes import Timing
from penstock.workers.pools.providers.base import Provider
from penstock.workers.pools.providers.make import Site, provider_of
from penstock.workers.pools.shared import Shared

from ..support.receiver import SECRET, Answer, Receiver, receiver
from ..support.redis import RedisServer, redis_server
from ..support.sharing import TIMING
from ..unit.test_pool_runner import Controller, World, until

REMOVED = Config(models={})
SHORT = Timing(beat_s=0.1, lease_s=0.9, silent_s=0.4)
"""Where nobody is harmed by a node that a busy machine takes for gone."""


class Runner(Controller):
    """A controller with the providers that there are."""

    def _make(self, site: Site) -> Provider:
        return provider_of(replace(site, environ={"HOOK_SECRET": SECRET}))


class Nodes:
    """Two that have the pool, and the one server that the receiver starts and stops."""

    def __init__(self, redis: RedisServer, timing: Timing) -> None:
        self.redis = redis
        self.timing = timing
        self.up = False
        self.url = ""
        self.hook: Receiver
        self.config = REMOVED
        self.worlds: list[World] = []
        self.all: list[Runner] = []

    def act(self, said: dict[str, Any]) -> None:
        self.up = said["action"] == "start"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.up:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def join(self, folder: Path) -> None:
        segment = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
        self.worlds.append(World(segment, self.url))
        name = f"n{len(self.all)}"
        shared = Shared(
            RedisLeases(RedisSettings(self.redis.url), "penstock"),
            name,
            f"{name}.1",
            clock=time.monotonic,
            random=os.urandom,
            timing=self.timing,
        )
        self.all.append(Runner(self.worlds[-1], self.config, folder, shared))

    async def serve(self) -> None:
        """Have both serve with one server."""
        self.worlds[0].worker.add_waiting(0, 1)
        for world in self.worlds:
            await until(lambda world=world: world.phase() is PoolPhase.READY)
        self.worlds[0].worker.add_waiting(0, -1)

    def said(self, action: str) -> int:
        return sum(said["action"] == action for said in self.hook.acted)

    def seen_off(self, node: Runner) -> bool:
        return not node.runner._retired and node.runner._shared is not None and not node.runner._shared._pools


@asynccontextmanager
async def nodes_of(redis: RedisServer, folder: Path, timing: Timing = TIMING) -> AsyncIterator[Nodes]:
    nodes = Nodes(redis, timing)
    server = await asyncio.start_server(nodes.answer, "127.0.0.1", 0)
    nodes.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with receiver(nodes.act) as nodes.hook:
        pool = WebhookPool(url=nodes.hook.url, secret_env="HOOK_SECRET", gpus=0, idle_timeout_s=100.0)
        model = Model(backends=(Backend(url=nodes.url),), pool=pool)
        nodes.config = Config(models={"m": model}, health=Health(path="/health"))
        for number in range(2):
            nodes.join(folder / str(number))
        try:
            yield nodes
        finally:
            for node in nodes.all:
                await node.end()
            server.close()
            for world in nodes.worlds:
                world.segment.close()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


async def test_the_last_that_is_told_ends_its_servers_when_nothing_is_in_flight_anywhere(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes_of(redis, tmp_path) as nodes:
        await nodes.serve()
        first, second = nodes.all
        row = second.row
        nodes.worlds[1].worker.add(row, 1)
        first.swap(REMOVED)
        # refused once: it is tried again, as a stop is
        nodes.hook.answers.append(Answer(400))
        second.swap(REMOVED)
        for _ in range(round(1.5 * TIMING.silent_s / 0.03)):
            await asyncio.sleep(0.03)
        assert nodes.up
        assert len(nodes.hook.posts) == 1, "the start"
        nodes.worlds[1].worker.add(row, -1)
        await until(lambda: not nodes.up)
        await until(lambda: all(map(nodes.seen_off, nodes.all)))
        assert (nodes.said("start"), nodes.said("stop")) == (1, 1)
        assert caplog.text.count("pool_stop_failed") == 1
        assert caplog.text.count("pool_ended pool=m") == 1
        assert caplog.text.count("pool_left pool=m") == 1


async def test_removed_from_one_the_other_goes_on_and_owns_it(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes_of(redis, tmp_path) as nodes:
        await nodes.serve()
        await until(lambda: any(owns(node) for node in nodes.all))
        leaver, other = sorted(nodes.all, key=owns, reverse=True)
        leaver.swap(REMOVED)
        await until(lambda: owns(other))
        await until(lambda: "pool_left pool=m" in caplog.text)
        await until(lambda: nodes.seen_off(leaver))
        assert other.world.phase() is PoolPhase.READY
        assert (nodes.up, nodes.said("stop")) == (True, 0)
        shared = other.runner._shared
        assert shared is not None
        await until(lambda: not shared.others("m").busy)


async def test_with_redis_away_it_says_so_and_waits(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes_of(redis, tmp_path, SHORT) as nodes:
        await nodes.serve()
        redis.kill()
        for node in nodes.all:
            node.swap(REMOVED)
        await until(lambda: caplog.text.count("pool_runs_on pool=m") == 2)
        for _ in range(10):
            await asyncio.sleep(0.03)
        assert nodes.up
        assert caplog.text.count("pool_runs_on pool=m") == 2, "once each"
        await nodes.all.pop().end()
        assert "the gateway stops before they could be ended" in caplog.text
        redis.start()
        await until(lambda: not nodes.up)
        assert nodes.said("stop") == 1


async def test_put_back_it_goes_on_and_removed_again_it_ends(redis: RedisServer, tmp_path: Path) -> None:
    async with nodes_of(redis, tmp_path, replace(SHORT, silent_s=0.8)) as nodes:
        await nodes.serve()
        first, second = nodes.all
        for node in nodes.all:
            node.swap(REMOVED)
        first.swap(nodes.config)
        await until(lambda: (first.runner.report("m") or {}).get("phase") == "ready")
        await until(lambda: nodes.seen_off(second))
        assert (nodes.up, nodes.said("stop")) == (True, 0)
        for config in (REMOVED, nodes.config, REMOVED):  # faster than anything is begun
            for node in nodes.all:
                node.swap(config)
        await until(lambda: not nodes.up)
        await until(lambda: all(map(nodes.seen_off, nodes.all)))


@pytest.mark.parametrize("kind", ["process", "kubernetes"])
async def test_another_provider_takes_its_name(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Of the next pool's own node its servers end; of one that nodes share too they cannot agree on both."""
    other: ProcessPool | KubernetesPool = ProcessPool(command=("x", "{port}"), gpus=0)
    if kind == "kubernetes":
        other = KubernetesPool(scale=Scale(kind="deployment", name="x"), gpus=0)
    async with nodes_of(redis, tmp_path, SHORT) as nodes:
        await nodes.serve()
        backends = () if kind == "process" else nodes.config.models["m"].backends
        pools = Pools(kubernetes=KubernetesApi(server="http://127.0.0.1:9"))
        for node in nodes.all:
            node.swap(Config(models={"m": Model(pool=other, backends=backends)}, pools=pools))
        if kind == "process":
            await until(lambda: not nodes.up)
            assert nodes.said("stop") == 1
        else:
            await until(lambda: caplog.text.count("pool_runs_on pool=m") == 2)
            assert nodes.up


def owns(node: Runner) -> bool:
    shared = node.runner._shared
    return shared is not None and shared.others("m").may_stop
