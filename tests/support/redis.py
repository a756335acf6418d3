"""Real redis-server processes on free loopback ports: one alone, a master watched by Sentinel, or a Cluster.

Data lives in memory alone (no snapshot, no append-only file), so a server that is started again is an empty one.
Timers are scaled down so that a failover takes about two seconds.
"""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

from .procs import Proc, free_port, wait_until
from .scripted import certificate

HOST = "127.0.0.1"
SERVICE = "penstock"
"""The name of the master that sentinels watch."""

ADMIN_PASSWORD = "admin-of-the-test"
"""Of the default user, on servers that have an ACL user."""

_DOWN_AFTER_MS = 300
_NODE_TIMEOUT_MS = 400


@dataclass(frozen=True, slots=True)
class AclUser:
    """A user for Penstock, restricted to what it needs; the default user then has ADMIN_PASSWORD."""

    name: str = "penstock"
    password: str = "a secret & more %2F"
    rules: str = (
        "~penstock:* &penstock:* -@all +mget +get +set +del +pexpire +evalsha +eval +hgetall +hget +hset +hsetnx"
        " +publish +subscribe +unsubscribe +ping +select +command +cluster|slots +asking +config|get"
    )


class RedisServer:
    """One redis-server process. ``port`` stays the same over ``restart``."""

    def __init__(self, conf: dict[str, Any], *, name: str = "redis", user: AclUser | None = None) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"penstock-test-{name}-"))
        self.user = user
        self.ca: Path | None = None
        self._name = name
        self._conf = dict(conf)
        if self._conf.pop("tls", False):
            self.ca = certificate(self.folder, HOST, "localhost")
        self._proc: Proc | None = None

    @property
    def url(self) -> str:
        """For RedisSettings: without credentials."""
        return f"{'rediss' if self.ca else 'redis'}://{HOST}:{self.port}/0"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._proc is not None, f"{self._name} was not started"
        return self._proc.pid

    def client(self, **options: Any) -> redis.Redis:
        """A blocking client for the test itself, with every right. Close it, or use it as a context manager."""
        tls = {"ssl": True, "ssl_ca_certs": str(self.ca)} if self.ca else {}
        password = {"password": ADMIN_PASSWORD} if self.user else {}
        return redis.Redis(host=HOST, port=self.port, **{"socket_timeout": 10, **tls, **password, **options})

    def command(self, *words: Any) -> Any:
        """Run one command on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*words)

    def info(self, section: str) -> dict[str, Any]:
        with self.client() as client:
            answer: dict[str, Any] = client.info(section)
            return answer

    def calls(self, command: str) -> int:
        """How often a command ran since the start or ``CONFIG RESETSTAT``; those from scripts count too."""
        return int(self.info("commandstats").get(f"cmdstat_{command.lower()}", {}).get("calls", 0))

    def configure(self, **settings: Any) -> None:
        """CONFIG SET; a ``_`` in a name is a ``-``."""
        for name, value in settings.items():
            self.command("CONFIG", "SET", name.replace("_", "-"), value)

    def start(self) -> Self:
        """Start it, empty, and wait until it answers."""
        assert self._proc is None
        argv = [_program()]
        if self._name == "sentinel":
            path = self.folder / "sentinel.conf"  # it writes there what it learns
            path.write_text("".join(f"{name} {value}\n" for name, value in self._settings()))
            argv += [str(path), "--sentinel"]
        else:
            for name, value in self._settings():
                argv += [f"--{name}", *(value.split() if name in {"user", "replicaof"} else [value])]
        self._proc = Proc(argv, name=self._name, ready=self._answers, grace_s=5, cwd=self.folder)
        try:
            self._proc.start()
        except BaseException:
            self._proc = None
            raise
        return self

    def stop(self) -> None:
        """End it; no harm done when it is not running."""
        if self._proc is not None:
            proc, self._proc = self._proc, None
            with contextlib.suppress(ProcessLookupError):
                proc.send(signal.SIGCONT)
            with proc:
                proc.stop()

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._proc is not None:
            self._proc.send(signal.SIGKILL)
            self.stop()

    def restart(self) -> None:
        """Replace it by an empty one on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._proc is not None
        self._proc.send(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._proc is not None
        self._proc.send(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self if self._proc else self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _settings(self) -> Iterator[tuple[str, str]]:
        yield "bind", HOST
        yield "dir", str(self.folder)
        if self.ca:
            yield "port", "0"
            yield "tls-port", str(self.port)
            yield "tls-cert-file", str(self.ca)
            yield "tls-key-file", str(self.ca)
            yield "tls-ca-cert-file", str(self.ca)
            yield "tls-auth-clients", "no"
        else:
            yield "port", str(self.port)
        if self._name != "sentinel":
            yield "save", ""
            yield "appendonly", "no"
            yield "repl-diskless-sync-delay", "0"
        if self.user:
            yield "user", f"default on >{ADMIN_PASSWORD} ~* &* +@all"
            yield "user", f"{self.user.name} on {self.user.rules}"
        for name, value in self._conf.items():
            for one in value if isinstance(value, list) else [value]:
                yield name.replace("_", "-"), str(one)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                if self.user:  # here, for a password may have what a command line would split at
                    client.execute_command("ACL", "SETUSER", self.user.name, f">{self.user.password}")
                return bool(client.ping())
        except redis.RedisError:
            return False


def _program() -> str:
    found = shutil.which("redis-server")
    assert found, "redis-server is not installed"
    return found


@contextlib.contextmanager
def redis_server(*, user: AclUser | None = None, **conf: Any) -> Iterator[RedisServer]:
    """One server. Keywords are its settings (``maxmemory="20mb"``); ``tls=True`` makes it speak TLS alone."""
    with RedisServer(conf, user=user) as server:
        yield server


@dataclass
class SentinelSet:
    """A master, its replicas, and the sentinels that watch them."""

    servers: list[RedisServer]
    sentinels: list[RedisServer]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The sentinels' addresses."""
        return tuple(sentinel.address for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        """The host is the service's name."""
        return f"redis://{SERVICE}/0"

    def master(self) -> RedisServer:
        """Whom the sentinels call master at this moment."""
        port = self._asked(self.sentinels[0])
        return next(server for server in self.servers if server.port == port)

    def settled(self) -> bool:
        """Whether all sentinels name one master, and every other server that runs follows it."""
        ports = {self._asked(sentinel) for sentinel in self.sentinels}
        if len(ports) != 1:
            return False
        for server in self.servers:
            if server._proc is not None:
                role = server.command("ROLE")
                follows = role[0] == b"slave" and role[2] in ports and role[3] == b"connected"
                if not (role[0] == b"master" if server.port in ports else follows):
                    return False
        return True

    def another_than(self, old: RedisServer) -> None:
        """Wait until the sentinels agree on another master."""
        wait_until(
            lambda: len(ports := {self._asked(s) for s in self.sentinels}) == 1 and old.port not in ports,
            what="another master",
        )

    def _asked(self, sentinel: RedisServer) -> int:
        answer = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(answer[1])


@contextlib.contextmanager
def redis_sentinel(*, replicas: int = 1, sentinels: int = 3) -> Iterator[SentinelSet]:
    """A master with replicas under sentinels, settled."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(RedisServer({}))
        follow = {"replicaof": f"{HOST} {master.port}", "replica_priority": 10}
        servers = [master, *(stack.enter_context(RedisServer(follow)) for _ in range(replicas))]
        conf = {
            "sentinel": [
                f"monitor {SERVICE} {HOST} {master.port} {sentinels // 2 + 1}",
                f"down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
                f"failover-timeout {SERVICE} 3000",
            ]
        }
        watchers = [stack.enter_context(RedisServer(conf, name="sentinel")) for _ in range(sentinels)]
        for watcher in watchers:
            watcher.command("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "ASK-PERIOD", 200)
        found = SentinelSet(servers, watchers)
        wait_until(lambda: _watched(found), what="the sentinels know each other and the replicas")
        wait_until(found.settled, what="the replicas follow")
        yield found


def _watched(found: SentinelSet) -> bool:
    for sentinel in found.sentinels:
        words = sentinel.command("SENTINEL", "MASTER", SERVICE)
        pairs = words if isinstance(words, dict) else dict(zip(words[::2], words[1::2], strict=True))
        facts = {_text(name): _text(value) for name, value in pairs.items()}
        if int(facts["num-slaves"]) != len(found.servers) - 1:
            return False
        if int(facts["num-other-sentinels"]) != len(found.sentinels) - 1:
            return False
    return True


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass
class ClusterSet:
    """A Redis Cluster: masters first, then replicas."""

    servers: list[RedisServer]

    @property
    def url(self) -> str:
        return self.servers[0].url

    @property
    def nodes(self) -> tuple[str, ...]:
        """The addresses of the other nodes."""
        return tuple(server.address for server in self.servers[1:])

    def masters(self) -> list[RedisServer]:
        """The running servers that are masters at this moment."""
        return [s for s in self.servers if s._proc is not None and s.command("ROLE")[0] == b"master"]

    def owner(self, key: str | bytes) -> RedisServer:
        """The running master whose slot range holds a key."""
        asked = next(server for server in self.servers if server._proc is not None)
        slot = asked.command("CLUSTER", "KEYSLOT", key)
        port = next(port for port, low, high in _slot_rows(asked) if low <= slot <= high)
        return next(server for server in self.servers if server.port == port)

    def taken_over(self, old: RedisServer) -> None:
        """Wait until every other server says that replicas serve the slots of a master that is gone."""
        others = [server for server in self.servers if server is not old]
        wait_until(
            lambda: all(old.port not in _slot_owners(s) and _cluster_ok(s) for s in others),
            what="a new master",
        )

    def move_slot(self, key: str, to: int, between: Callable[[], object]) -> None:
        """Give the slot of a key to another master, key by key as operators do; ``between`` is called when half
        of its keys have moved.
        """
        there = self.servers[to]
        here = self.owner(key)
        assert here is not there
        slot = here.command("CLUSTER", "KEYSLOT", key)
        names = {s: _text(s.command("CLUSTER", "MYID")) for s in (here, there)}
        there.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[here])
        here.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[there])
        keys = here.command("CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        for i, name in enumerate(keys):
            if i == len(keys) // 2:
                between()
            here.command("MIGRATE", HOST, there.port, name, 0, 5000)
        while keys := here.command("CLUSTER", "GETKEYSINSLOT", slot, 100_000):
            for name in keys:
                here.command("MIGRATE", HOST, there.port, name, 0, 5000)
        for server in (there, here, *self.servers):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", names[there])

    def whole(self) -> bool:
        """Whether every running server says that all slots are served."""
        running = [server for server in self.servers if server._proc is not None]
        return all(_cluster_ok(server) for server in running)

    def calls(self, command: str) -> int:
        """Sum over all servers; see RedisServer.calls."""
        return sum(server.calls(command) for server in self.servers if server._proc is not None)


def _slot_rows(server: RedisServer) -> list[tuple[int, int, int]]:
    """Ranges of slots as a server knows them: port of the master, first, last."""
    with server.client() as client:
        line = client.connection_pool.get_connection()
        try:
            line.send_command("CLUSTER", "SLOTS")  # raw: what redis-py makes of it depends on its version
            answer: Any = line.read_response()
        finally:
            client.connection_pool.release(line)
    return [(row[2][1], row[0], row[1]) for row in answer]


def _slot_owners(server: RedisServer) -> set[int]:
    return {port for port, _, _ in _slot_rows(server)}


def _cluster_ok(server: RedisServer) -> bool:
    with server.client() as client:
        facts: Any = client.execute_command("CLUSTER INFO")
    state = facts["cluster_state"] if isinstance(facts, dict) else _text(facts).split()[0].rpartition(":")[2]
    return bool(state == "ok")


@contextlib.contextmanager
def redis_cluster(*, masters: int = 3, replicas: int = 1) -> Iterator[ClusterSet]:
    """A cluster of ``masters``, formed and whole; each replica follows one of the first masters."""
    with contextlib.ExitStack() as stack:
        conf = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": _NODE_TIMEOUT_MS,
            "cluster_require_full_coverage": "no",
            "cluster_replica_validity_factor": 0,
        }
        servers = [
            stack.enter_context(RedisServer({**conf, "cluster_port": free_port()}, name="cluster"))
            for _ in range(masters + replicas)
        ]
        edges = [16384 * i // masters for i in range(masters + 1)]
        for i, server in enumerate(servers):
            if i < masters:
                server.command("CLUSTER", "ADDSLOTSRANGE", edges[i], edges[i + 1] - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for server in servers[1:]:
            bus = server._conf["cluster_port"]
            servers[0].command("CLUSTER", "MEET", HOST, server.port, bus)
        found = ClusterSet(servers)
        wait_until(lambda: all(_known(s) == len(servers) for s in servers), what="the nodes know each other")
        for i, replica in enumerate(servers[masters:]):
            name = _text(servers[i % masters].command("CLUSTER", "MYID"))
            replica.command("CLUSTER", "REPLICATE", name)
        wait_until(found.whole, what="the cluster is whole")
        for replica in servers[masters:]:
            wait_until(lambda r=replica: r.command("ROLE")[3] == b"connected", what="the replica follows")
        yield found


def _known(server: RedisServer) -> int:
    with server.client() as client:
        facts: Any = client.execute_command("CLUSTER INFO")
    if isinstance(facts, dict):
        return int(facts["cluster_known_nodes"])
    lines = dict(line.split(":") for line in _text(facts).split())
    return int(lines["cluster_known_nodes"])
