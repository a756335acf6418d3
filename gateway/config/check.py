"""What types cannot say: clashes, capacities, and whether this machine can carry the configuration.

Pure, apart from files that the configuration itself names. What the machine has comes in as a `Machine`, so
that a test can be a machine with two cores and a thousand descriptors.
"""

import os
import resource
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from .addresses import is_loopback, nameserver, parts_of
from .check_backends import backend_faults
from .check_pools import pool_faults
from .check_telemetry import telemetry_faults
from .faults import ConfigError, Fault
from .outside import unreadable, unset
from .redis import RedisServer
from .structs import MAX_BACKENDS, MAX_MODELS, Config, Tls

_SPARE_DESCRIPTORS = 128
MIN_L1_ENTRIES = 8
_MAX_SOCKET_PATH_BYTES = 107
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class Machine:
    """What a configuration is checked against: usable cores, the most descriptors a process may have, and whether
    the extra `otel` is installed.
    """

    cores: frozenset[int]
    max_descriptors: int
    otel: bool = True

    @classmethod
    def here(cls, pid: int = 0) -> "Machine":
        """The machine and limits of a process, this one by default. Raises OSError for another user's."""
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        return cls(
            cores=frozenset(os.sched_getaffinity(pid)),
            max_descriptors=2**31 if hard == resource.RLIM_INFINITY else hard,
            otel=_installed("opentelemetry.exporter.otlp.proto.http"),
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # not even what it is in
        return False


def descriptors(config: Config) -> int:
    """How many file descriptors one worker may need at worst."""
    upstream = sum(model.max_concurrent for model in config.models.values())
    idle = config.upstream.connections.max_idle * sum(len(model.backends) for model in config.models.values())
    return config.listen.max_connections + upstream + idle + _SPARE_DESCRIPTORS


def tls_fault(tls: Tls) -> str | None:
    """Why the certificate and key, as they are on disk now, cannot be used; None when they can."""
    try:
        # An encrypted key would make OpenSSL ask the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except (ValueError, OSError) as fault:  # ssl.SSLError is an OSError
        reason = getattr(fault, "reason", None)
        if reason is None and not isinstance(fault, ssl.SSLError):
            reason = getattr(fault, "strerror", None)
        return f"certificate and key do not load ({reason or 'not PEM, or encrypted'})"
    return None


def check(name: str, config: Config, environ: Mapping[str, str], machine: Machine) -> None:
    """Raise ConfigError for the first thing that cannot work; `name` is what the error calls the file."""
    _Check(name, environ, machine).all(config)


def check_store(name: str, store: RedisServer, environ: Mapping[str, str]) -> None:
    """Raise ConfigError where `store` cannot be reached as it is written."""
    _Check(name, environ, Machine(frozenset(), 0))._redis("$.store", store)


class _Check:
    def __init__(self, name: str, environ: Mapping[str, str], machine: Machine) -> None:
        self._name = name
        self._environ = environ
        self._machine = machine

    def _fail(self, path: str, what: str, fix: str) -> ConfigError:
        return ConfigError(self._name, path, what, fix)

    def all(self, config: Config) -> None:
        self._listeners(config)
        self._workers(config)
        self._limits(config)
        self._cache(config)
        self._keys(config)
        self._names(config)
        self._discovery(config)
        self._none_of(pool_faults(config, self._environ))
        self._none_of(telemetry_faults(config, self._environ, self._machine.otel))
        self._none_of(backend_faults(config, self._environ))
        self._capacity(config)

    def _listeners(self, config: Config) -> None:
        listen, admin = config.listen, config.admin
        if listen.port == admin.port:
            raise self._fail(
                "$.admin.port", f"{admin.port} is the API port too", "choose another, such as 9090"
            )
        if admin.key_env is None and admin.on_api_port:
            raise self._fail("$.admin.on_api_port", "would be open to every client", "set `admin.key_env`")
        if admin.key_env is None and not is_loopback(admin.host):
            raise self._fail(
                "$.admin.host",
                f"{admin.host} can be reached from outside",
                "set `admin.key_env`, or use 127.0.0.1",
            )
        self._secret("$.admin.key_env", admin.key_env)
        if listen.uds is not None:
            folder = os.path.dirname(listen.uds) or "."
            if len(os.fsencode(listen.uds)) > _MAX_SOCKET_PATH_BYTES:
                raise self._fail(
                    "$.listen.uds", "longer than a socket's path may be (107 bytes)", "use a shorter path"
                )
            if not os.path.isdir(folder):
                raise self._fail(
                    "$.listen.uds", f"there is no folder {folder}", "create it, or use another path"
                )
        if listen.tls is not None:
            self._readable("$.listen.tls.cert", listen.tls.cert)
            self._readable("$.listen.tls.key", listen.tls.key)
            fault = tls_fault(listen.tls)
            if fault is not None:
                raise self._fail("$.listen.tls", fault, "check that the key is the cert's")

    def _workers(self, config: Config) -> None:
        workers = config.workers
        if workers.cores is not None:
            if not workers.cores:
                raise self._fail("$.workers.cores", "an empty list", "name cores, or remove the key")
            for core in workers.cores:
                if core not in self._machine.cores:
                    usable = ", ".join(map(str, sorted(self._machine.cores)))
                    raise self._fail(
                        "$.workers.cores", f"core {core} cannot be used here", f"usable: {usable}"
                    )
            if len(set(workers.cores)) < len(workers.cores):
                raise self._fail("$.workers.cores", "a core is named twice", "name each once")
            if workers.count != "auto" and workers.count > len(workers.cores):
                raise self._fail(
                    "$.workers.count",
                    f"{workers.count} workers for {len(workers.cores)} cores",
                    "lower it, or name more in `workers.cores`",
                )
        if workers.drain_timeout_s <= workers.drain_delay_s:
            raise self._fail(
                "$.workers.drain_timeout_s",
                f"{workers.drain_timeout_s:g} s is over before `drain_delay_s` is",
                "make it longer",
            )

    def _limits(self, config: Config) -> None:
        limits, connections = config.limits, config.upstream.connections
        for key, size in (("max_body", limits.max_body), ("max_response", limits.max_response)):
            if size > limits.max_buffered:
                raise self._fail(
                    f"$.limits.{key}",
                    "larger than `limits.max_buffered`",
                    "lower it, or raise `max_buffered`",
                )
        if connections.min_idle > connections.max_idle:
            raise self._fail(
                "$.upstream.connections.min_idle", "larger than `max_idle`", "lower it, or raise `max_idle`"
            )
        if config.upstream.http2.min_connections > config.upstream.http2.max_connections:
            raise self._fail(
                "$.upstream.http2.min_connections",
                "larger than `max_connections`",
                "lower it, or raise `max_connections`",
            )

    def _cache(self, config: Config) -> None:
        l1, l2 = config.cache.l1, config.cache.l2
        if l1.size and l1.size < MIN_L1_ENTRIES * l1.max_entry:
            raise self._fail(
                "$.cache.l1.size",
                f"holds fewer than {MIN_L1_ENTRIES} answers of `max_entry`",
                "raise it, or lower `cache.l1.max_entry`",
            )
        if l1.keep and l1.size == 0:
            raise self._fail("$.cache.l1.keep", "there is nothing to keep", "give `size`, or remove `keep`")
        if l2 is not None:
            self._redis("$.cache.l2", l2)

    def _redis(self, path: str, server: RedisServer) -> None:
        parts, port = parts_of(server.url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0:
            raise self._fail(f"{path}.url", "not the URL of a Redis", "write redis://host:6379/0")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise self._fail(
                f"{path}.url",
                "a user, a password or a query in a URL",
                "use `username` and `password_env`",
            )
        database = parts.path.strip("/")
        if database and not (database.isascii() and database.isdigit()):
            raise self._fail(
                f"{path}.url", f"{database} is not a database's number", "write redis://host:6379/0"
            )
        if server.topology == "cluster" and database not in ("", "0"):
            raise self._fail(f"{path}.url", "a cluster has database 0 alone", "end the URL after the port")
        if server.topology == "sentinel" and not server.nodes:
            raise self._fail(path, "`nodes` is missing", "name the sentinels, host:port each")
        if server.topology == "single" and server.nodes:
            raise self._fail(f"{path}.nodes", "of no use with one server", "remove them, or give `topology`")
        for index, node in enumerate(server.nodes):
            host, _, number = node.rpartition(":")
            if not host or not number.isdigit() or not 1 <= int(number) <= 65_535:
                raise self._fail(
                    f"{path}.nodes[{index}]", f"{node} is not host:port", "write sentinel-1:26379"
                )
        self._secret(f"{path}.password_env", server.password_env)
        if server.tls is None:
            return
        if parts.scheme != "rediss":
            raise self._fail(f"{path}.tls", "the URL is not rediss", "write rediss:// in it, or remove `tls`")
        for key in ("ca", "cert", "key"):
            file = getattr(server.tls, key)
            if file is not None:
                self._readable(f"{path}.tls.{key}", file)
        if (server.tls.cert is None) is not (server.tls.key is None):
            raise self._fail(f"{path}.tls", "`cert` and `key` need each other", "give both, or neither")

    def _keys(self, config: Config) -> None:
        keys = config.keys
        if config.store is not None:
            self._redis("$.store", config.store)
        if config.pools.redis is not None:
            self._redis("$.pools.redis", config.pools.redis)
        if config.limits.redis is not None:
            self._redis("$.limits.redis", config.limits.redis)
            if keys is None:
                raise self._fail(
                    "$.limits.redis",
                    "limits belong to API keys, and there are none",
                    "add `keys`, or remove it",
                )
        if keys is None:
            return
        if (keys.file is None) is (keys.redis is None):
            raise self._fail("$.keys", "one of `file` and `redis` is needed", "give one of them")
        if keys.redis is not None:
            self._redis("$.keys.redis", keys.redis)

    def _discovery(self, config: Config) -> None:
        for index, text in enumerate(config.discovery.nameservers):
            try:
                nameserver(text)
            except ValueError:
                raise self._fail(
                    f"$.discovery.nameservers[{index}]",
                    f"{text} is no address",
                    "write 10.0.0.2 or 10.0.0.2:53",
                ) from None

    def _names(self, config: Config) -> None:
        if len(config.models) > MAX_MODELS:
            raise self._fail("$.models", f"{len(config.models)} models, at most {MAX_MODELS}", "remove some")
        owner: dict[str, str] = {}
        for name in config.models:
            self._a_name(f"$.models.{name}", name)
        for name, model in config.models.items():
            for index, alias in enumerate(model.aliases):
                path = f"$.models.{name}.aliases[{index}]"
                self._a_name(path, alias)
                if alias in config.models:
                    raise self._fail(path, f"{alias} is the name of a model", "use another alias")
                if alias in owner:
                    raise self._fail(
                        path, f"{alias} is already an alias of {owner[alias]}", "keep one of them"
                    )
                owner[alias] = name

    def _a_name(self, path: str, name: str) -> None:
        if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
            raise self._fail(
                path,
                "not a model's name",
                f"use 1 to {_MAX_NAME_CHARS} printable characters, no space at the ends",
            )

    def _secret(self, path: str, variable: str | None) -> None:
        self._none_of(unset(path, variable, self._environ))

    def _readable(self, path: str, file: str) -> None:
        self._none_of(unreadable(path, file))

    def _none_of(self, faults: Iterable[Fault]) -> None:
        for path, what, fix in faults:
            raise self._fail(path, what, fix)

    def _capacity(self, config: Config) -> None:
        backends = sum(len(model.backends) for model in config.models.values())
        if backends > MAX_BACKENDS:
            raise self._fail("$.models", f"{backends} backends in all, at most {MAX_BACKENDS}", "remove some")
        needed = descriptors(config)
        if needed > self._machine.max_descriptors:
            raise self._fail(
                "$.listen.max_connections",
                f"a worker may need {needed} file descriptors and gets {self._machine.max_descriptors}",
                "lower it, `max_concurrent` or `max_idle`, or raise the hard limit (ulimit -Hn, LimitNOFILE)",
            )
