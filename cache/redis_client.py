"""A redis-py client from settings: one server, the master that Sentinel names, or a Cluster.

Used by workers for the second tier and by the controller for epochs. It knows how to reach Redis and refuses to know
what is kept there. Credentials come from settings alone, never from the url, so that a url may be printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

Topology = Literal["single", "sentinel", "cluster"]
Client: TypeAlias = "Redis | RedisCluster"

CONNECT_TIMEOUT_S = 1.0
SOCKET_TIMEOUT_S = 2.0  # after that without a reply the connection is given up
_READ_SIZE_BYTES = 256 << 10
_PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where Redis is.

    url: ``redis://host:port/db``, ``rediss://`` for TLS, or ``unix:///path?db=0`` (single alone). With sentinel its
    host is the name of the service, with cluster one of the nodes. nodes: ``host:port`` of the sentinels, or of
    further cluster nodes to start from. username, password: of the data nodes; sentinels are asked without. ca,
    cert, key: PEM files; without ca the system's authorities count.
    """

    url: str
    topology: Topology = "single"
    nodes: tuple[str, ...] = ()
    username: str | None = None
    password: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __repr__(self) -> str:
        return f"RedisSettings({self.url!r}, {self.topology})"  # no secrets in a traceback


def client(
    settings: RedisSettings, *, retries: int = 1, timeout_s: float | None = SOCKET_TIMEOUT_S
) -> Client:
    """A client that connects when it is first used; end it with :func:`close`.

    retries: how often a command is sent again after a broken connection (a timeout is not retried). timeout_s: how
    long a reply is waited for; None leaves that to the caller and saves a task for each command. Raises
    ValueError, in one line and without secrets, for a url or nodes that cannot be used.
    """
    at = urlsplit(settings.url)
    if at.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("the url of Redis must begin with redis://, rediss:// or unix://")
    if "@" in at.netloc:
        raise ValueError("the url of Redis must not hold credentials: use username and password")
    options: dict[str, Any] = {
        "username": settings.username,
        "password": settings.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_read_size": _READ_SIZE_BYTES,
        "protocol": 2,  # one command less at connecting; nothing here needs what RESP3 adds
        "driver_info": None,
        "retry": Retry(NoBackoff(), retries, supported_errors=(RedisConnectionError,)),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if at.scheme == "unix":
        if settings.topology != "single":
            raise ValueError(f"{settings.topology} needs host names, not a unix socket")
        del options["maint_notifications_config"], options["socket_connect_timeout"]
        db = _number(at.query.removeprefix("db="), "database") if at.query else 0
        return _packing(Redis(unix_socket_path=at.path, db=db, **options))
    host = at.hostname
    try:
        port = at.port
    except ValueError:
        raise ValueError("the url of Redis has no port from 0 to 65535 where one should be") from None
    if not host:
        raise ValueError("the url of Redis names no host")
    tls: dict[str, Any] = {}
    if at.scheme == "rediss":
        tls = {
            "ssl": True,
            "ssl_ca_certs": settings.ca,
            "ssl_certfile": settings.cert,
            "ssl_keyfile": settings.key,
        }
    db = _number(at.path.strip("/"), "database") if at.path.strip("/") else 0
    if settings.topology == "cluster":
        if db:
            raise ValueError("a Redis Cluster has database 0 alone")
        nodes = [ClusterNode(*_address(node, "cluster")) for node in settings.nodes]
        # Half of a cluster is better than none: keys without a node are misses.
        return RedisCluster(
            host,
            port or _PORTS["cluster"],
            startup_nodes=nodes,
            require_full_coverage=False,
            **options,
            **tls,
        )
    if settings.topology == "sentinel":
        if not settings.nodes:
            raise ValueError("sentinel needs nodes: the sentinels' addresses")
        plain = {name: options[name] for name in ("protocol", "driver_info", "maint_notifications_config")}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [_address(node, "sentinel") for node in settings.nodes],
            sentinel_kwargs={
                **plain,
                **tls,
                # A sentinel that hangs must not cost a look-up much more than one that is gone.
                "socket_timeout": CONNECT_TIMEOUT_S / 2,
                "socket_connect_timeout": CONNECT_TIMEOUT_S / 2,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        master: Redis = sentinel.master_for(host, db=db, **options, **tls)
        return _packing(master)
    return _packing(Redis(host=host, port=port or _PORTS["single"], db=db, **options, **tls))


async def close(redis: Client) -> None:
    """Close every connection of a client, those to sentinels too. What goes wrong then does not matter."""
    pool = getattr(redis, "connection_pool", None)
    for closing in (redis, pool.sentinel_manager if isinstance(pool, SentinelConnectionPool) else None):
        if closing is not None:
            try:
                await closing.aclose()
            except (RedisError, OSError):
                continue


async def eviction_policy(redis: Client) -> str | None:
    """``maxmemory-policy``, such as ``noeviction`` or ``allkeys-lru``; None where CONFIG may not be asked."""
    try:
        answer = await redis.config_get("maxmemory-policy")
    except (RedisError, OSError):
        return None
    return next((_text(value) for name, value in answer.items() if _text(name) == "maxmemory-policy"), None)


class _Packing:
    """Of a connection: scripts are packed by hiredis, which is in C. redis-py joins a command anew for each of its
    arguments, a look-up's or a store's hundred and more.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        if args[0] == "EVALSHA":
            return [hiredis.pack_command(args)]
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc] # of the connection's class
        return packed


def _packing(redis: Redis) -> Redis:
    pool = redis.connection_pool
    of = pool.connection_class
    pool.connection_class = type(of.__name__, (_Packing, of), {})
    return redis


def _address(text: str, topology: Topology) -> tuple[str, int]:
    at = urlsplit(f"//{text}")
    try:
        host, port = at.hostname, at.port
    except ValueError:
        host, port = None, None
    if not host or "@" in text:
        raise ValueError(f"a {topology} node must be written host:port")
    return host, port or _PORTS[topology]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(text: str, what: str) -> int:
    if not text.isdigit():
        raise ValueError(f"the url of Redis has no number for its {what}")
    return int(text)
