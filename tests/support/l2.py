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


def lines(records: list[logging.LogRecord]) -> list[str]:
    """The events that the second tier logged, in order."""
    return [r.getMessage().split()[0] for r in records if r.name.startswith("penstock.cache")]
