"""Redis as the second tier's tests need it: one server, TLS with a restricted user, Sentinel, Cluster."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from penstock.cache.digest import Key
from penstock.cache.entry import pack
from penstock.cache.l2 import L2, L2Settings
from penstock.cache.redis_client import RedisSettings

from .redis import AclUser, ClusterSet, RedisServer, SentinelSet, redis_cluster, redis_sentinel, redis_server
from .scripted import until

PLACES = ["single", "tls", "sentinel", "cluster"]

_number = itertools.count()


@dataclass
class Place:
    """A Redis of some shape."""

    kind: str
    settings: RedisSettings
    running: Callable[[], list[RedisServer]]
    """The servers that hold keys."""
    whole: SentinelSet | ClusterSet | RedisServer

    def calls(self, command: str) -> int:
        """How often a command ran, on all servers."""
        return sum(server.calls(command) for server in self.running())

    def clients(self) -> set[tuple[int, int]]:
        """Port and number of every connection that clients have to the servers, but for this question's own."""
        found = set()
        for server in self.running():
            with server.client(single_connection_client=True) as asking:
                mine = asking.client_id()
                numbers = {int(client["id"]) for client in asking.client_list(_type="normal")}
                found |= {(server.port, number) for number in numbers - {mine}}
        return found

    def failed_over(self, old: RedisServer) -> None:
        """Wait until another server is master in place of one that is gone."""
        if isinstance(self.whole, SentinelSet):
            self.whole.another_than(old)
        elif isinstance(self.whole, ClusterSet):
            self.whole.taken_over(old)

    def holder(self, name: bytes) -> RedisServer:
        """The server that has, or would have, a key."""
        if isinstance(self.whole, ClusterSet):
            return self.whole.owner(name)
        return self.whole.master() if isinstance(self.whole, SentinelSet) else self.whole


@contextlib.contextmanager
def place(kind: str) -> Iterator[Place]:
    """One of PLACES, running."""
    if kind == "single":
        with redis_server() as server:
            yield Place(kind, RedisSettings(server.url), lambda: [server], server)
    elif kind == "tls":
        user = AclUser()
        with redis_server(user=user, tls=True) as server:
            settings = RedisSettings(
                server.url, username=user.name, password=user.password, ca=str(server.ca)
            )
            yield Place(kind, settings, lambda: [server], server)
    elif kind == "sentinel":
        with redis_sentinel() as sentinel:
            settings = RedisSettings(sentinel.url, "sentinel", sentinel.nodes)
            yield Place(kind, settings, lambda: [sentinel.master()], sentinel)
    else:
        with redis_cluster() as cluster:
            yield Place(kind, RedisSettings(cluster.url, "cluster", cluster.nodes), cluster.masters, cluster)


def a_prefix() -> str:
    """A prefix that no other test of this run has."""
    return f"penstock:{next(_number)}"


@contextlib.asynccontextmanager
async def tier(
    redis: RedisSettings,
    *,
    prefix: str,
    node: bytes | None = None,
    deadline_ms: int = 5000,
    lease_ms: int = 60_000,
    compress_above: int = 1024,
) -> AsyncIterator[L2]:
    """One process's second tier. Its deadline is far, for tests that are not about it."""
    l2 = L2(
        L2Settings(redis, prefix, deadline_ms=deadline_ms, lease_ms=lease_ms, compress_above=compress_above),
        node=node or os.urandom(16),
        loop=asyncio.get_running_loop(),
        clock=time.monotonic,
        random=random.Random(1),
    )
    try:
        yield l2
    finally:
        await l2.close()


def a_key() -> Key:
    return Key(os.urandom(32))


def an_entry(key: Key, size: int = 700, *, text: bool = False) -> bytes:
    """A packed entry; text compresses, the other does not."""
    value = (b"All work and no play. " * (size // 22 + 1))[:size] if text else os.urandom(size)
    return pack(key, 0, 1, 2, value)


def strangers(records: list[logging.LogRecord]) -> list[str]:
    """What anybody else had to warn of: asyncio of a lost exception, redis-py of whatever."""
    return [
        r.getMessage() for r in records if r.levelno >= logging.WARNING and not r.name.startswith("penstock.")
    ]


def lines(records: list[logging.LogRecord]) -> list[str]:
    """The events that the second tier logged, in order."""
    return [r.getMessage().split()[0] for r in records if r.name.startswith("penstock.cache")]


class Load:
    """Callers that look up and store all the time. Whatever a look-up raises ends the test."""

    def __init__(self, l2: L2) -> None:
        self.l2 = l2
        self.ended = 0
        self.hits_of_stored = 0
        self._going = True
        self._keys = [a_key() for _ in range(64)]
        self._hits: set[Key] = set()

    async def _caller(self, number: int) -> None:
        while self._going:
            key = self._keys[(number + self.ended) % len(self._keys)]
            found = await self.l2.get(key)
            self.ended += 1
            if isinstance(found, bytes):
                assert key in found[:64]
                self.hits_of_stored += 1
                self._hits.add(key)
            else:
                self.l2.put(key, an_entry(key), 60_000)
            await asyncio.sleep(0.001)

    async def more(self, count: int = 200) -> None:
        """Go on until so many more look-ups have ended."""
        await until(self.goal(count))

    def goal(self, count: int) -> Callable[[], bool]:
        """Asks, from any thread, whether so many more look-ups have ended."""
        goal = self.ended + count
        return lambda: self.ended >= goal

    async def in_use(self) -> None:
        """Go on until what is stored is found again."""
        goal = self.hits_of_stored + 100
        await until(lambda: self.hits_of_stored >= goal)

    async def all_in_use(self) -> None:
        """Go on until every key is found again."""
        self._hits.clear()
        await until(lambda: len(self._hits) == len(self._keys))

    @contextlib.asynccontextmanager
    async def running(self, callers: int = 32) -> AsyncIterator["Load"]:
        async with asyncio.TaskGroup() as tasks:
            for number in range(callers):
                tasks.create_task(self._caller(number))
            try:
                yield self
            finally:
                self._going = False
