"""Models and backends as requests see them: one immutable snapshot per configuration generation.

A new snapshot takes over the connection pools of backends that stayed, so a reload closes no connection that is
still wanted. Health is the one thing that changes inside a snapshot: it is read from shared memory by the worker's
tick, never by a request. Knows nothing of sockets: pools are made by the function it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xxhash import xxh3_64_intdigest

from ..cache.digest import prefix
from ..cache.pool_table import PoolTable
from .alias import Alias
from .batch_terms import BatchTerms
from .caller import ANYONE, Caller
from .config import CacheMode, Config, Published, places_itself
from .config.model import Backend as BackendConfig
from .config.model import Policy
from .config.structs import UpstreamSettings
from .endpoints import Endpoint
from .errors import Fault, Kind
from .fingerprint import KEY_SCHEMA
from .policies.eligible import rank
from .policies.peak_ewma import Ewma
from .pool_view import PoolView
from .upstream.call import CallTimeouts
from .upstream.h2_pool import H2Pool
from .upstream.origin import Origin
from .upstream.pool import Pool

#: Key heads remembered per model: tenants and namespaces may be many.
_KEY_HEADS = 4096
#: What counts of the weight of a backend that has just come up.
LEAST_RAMP = 0.1


class Backend:
    """One server of one model; ``index`` is its column in the tally and its row in the backend table."""

    __slots__ = (
        "_heads",
        "_secret",
        "_via",
        "breaker_stamp",
        "credit",
        "doubted",
        "ewma",
        "hint",
        "identity",
        "identity64",
        "index",
        "key",
        "kv",
        "max_concurrent",
        "name",
        "origin",
        "pool",
        "probe_ns",
        "ramp",
        "rank",
        "seed",
        "shunned_until",
        "shut",
        "since_s",
        "up",
        "waiting",
        "weight",
    )

    def __init__(
        self,
        index: int,
        config: BackendConfig,
        identity: str,
        secret: str | None,
        pool: Pool | H2Pool,
        key: object,
        zone: str | None = None,
        via: str = "",
    ) -> None:
        self.index = index
        self.identity = identity
        self.origin = Origin.parse(config.url)
        self.name = self.origin.name
        self.weight = config.weight
        #: its tier, and whether it stands in this node's zone: lower ones come first
        self.rank = rank(config.priority, config.zone, zone)
        #: requests at it at one time, 0 for no limit of its own
        self.max_concurrent = config.max_concurrent or 0
        #: stands for it where keys are hashed to backends, on every node alike
        self.seed = xxh3_64_intdigest(config.url.rstrip("/").encode())
        self.pool = pool
        self.key = key
        #: may be asked: not down, and not drained
        self.up = True
        #: its breaker is open: no request may go but the probe
        self.shut = False
        #: how many requests wait in the server, as it says itself; 0 when it has not said so lately
        self.waiting = 0.0
        #: how much of its KV cache is in use, 0 to 1, likewise
        self.kv = 0.0
        #: what both count, as requests in flight
        self.hint = 0.0
        #: its latency as this worker sees it, where the policy asks for that
        self.ewma = Ewma()
        #: where it stands in its turn among others
        self.credit = 0.0
        #: when its last slow start began (s, the worker's clock)
        self.since_s = float("-inf")
        #: what its weight counts now, 0.1 to 1 while it starts slowly
        self.ramp = 1.0
        #: other backends come first until then (s, the worker's clock)
        self.shunned_until = 0.0
        # more of its breaker (penstock.gateway.breakers): when a probe is due (ns of the monotonic clock), whether it
        # failed lately, what of its stripe has been read
        self.probe_ns = 0
        self.doubted = False
        self.breaker_stamp = 0
        self.identity64 = xxh3_64_intdigest(identity.encode())
        self._secret = secret
        self._via = via
        self._heads: dict[tuple[str, str], str] = {}

    def restart_ramp(self, now_s: float) -> None:
        """Begin a slow start now: it has come back, as this worker sees it."""
        self.since_s = now_s
        self.ramp = LEAST_RAMP

    def recovered(self, closed_ns: int) -> None:
        """Its breaker closed then (ns of the monotonic clock): it gets its share slowly."""
        self.restart_ramp(closed_ns / 1e9)

    def head(self, method: str, target: str) -> str:
        """The first lines of a request head to this backend, up to where the client's own fields follow."""
        known = self._heads.get((method, target))
        if known is None:
            known = (
                f"{method} {self.origin.base_path}{target} HTTP/1.1\r\nhost: {self.origin.host_header}\r\n"
            )
            if self._secret:
                known += f"authorization: Bearer {self._secret}\r\n"
            if self._via:  # by which a gateway knows a request that it has sent itself
                known += f"x-penstock-via: {self._via}\r\n"
            if len(self._heads) < 64:  # endpoints are few; targets with ids or queries are not kept for ever
                self._heads[(method, target)] = known
        return known


class Model:
    """One configured model with its bounds and backends; satisfies what admission asks for."""

    __slots__ = (
        *(
            "_key_heads",
            "backends",
            "batching",
            "cache_mode",
            "fallbacks",
            "index",
            "max_concurrent",
            "max_model_len",
            "max_queue",
            "name",
        ),
        *(
            "places",
            "plain",
            "policy",
            "pool",
            "prefix_chars",
            "queue_timeout_s",
            "ranked",
            "shared_url",
            "timed",
            "timeouts",
            "version",
        ),
    )

    def __init__(
        self,
        name: str,
        index: int,
        version: str,
        backends: tuple[Backend, ...],
        *,
        timeouts: CallTimeouts,
        max_concurrent: int,
        max_queue: int,
        queue_timeout_s: float,
        max_model_len: int | None,
        cache_mode: CacheMode = "deterministic",
        policy: Policy = "least_connections",
        prefix_chars: int = 1024,
        batching: BatchTerms | None = None,
        pool: PoolView | None = None,
        shared_url: bool = False,
    ) -> None:
        self.name = name
        self.index = index
        self.version = version
        self.backends = backends
        self.timeouts = timeouts
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.queue_timeout_s = queue_timeout_s
        self.max_model_len = max_model_len
        self.cache_mode = cache_mode
        #: who answers when none of the backends can be had; models of the same fleet
        self.fallbacks: tuple[Model, ...] = ()
        self.policy = policy
        self.prefix_chars = prefix_chars
        #: how small requests go upstream together, where they do
        self.batching = batching
        #: the servers behind it where they may sleep; ``shared_url``: several of them may answer at one URL
        self.pool = pool
        self.shared_url = shared_url
        #: whether the time to an answer's first byte is to be told to its backend
        self.timed = policy == "peak_ewma"
        #: whether backends differ in more than their weights: tiers, zones, limits of their own
        self.ranked = len({b.rank for b in backends}) > 1 or any(b.max_concurrent for b in backends)
        #: nothing but the least busy is asked for
        self.plain = policy == "least_connections" and not self.ranked
        self._key_heads: dict[tuple[Endpoint, str, str], bytes] = {}

        self.count_places()

    def count_places(self) -> None:
        """See how many requests may be at its backends at one time: no more than those that are up will take.

        Where none is up it is the model's own number, so that requests are told so instead of waiting for it. Of a pool
        the model's number is each server's.
        """
        pool = self.pool
        if pool is not None:
            mine = self.max_concurrent
            up = sum(backend.max_concurrent or mine for backend in self.backends if backend.up)
            if self.shared_url and up:
                up = max(up, mine * pool.members)
            self.places = up or mine * pool.max
            return
        own = [backend.max_concurrent for backend in self.backends if backend.up]
        self.places = min(self.max_concurrent, sum(own)) if own and all(own) else self.max_concurrent

    def asks(self, backend: Backend) -> bool:
        """Whether a backend of it may be asked without waking anything."""
        return backend.up and (self.pool is None or self.pool.ready)

    @property
    def ready(self) -> bool:
        """Whether any backend may be tried, or woken."""
        models = (self, *self.fallbacks)
        return any(m.pool.wakes if m.pool is not None else any(b.up for b in m.backends) for m in models)

    def key_head(self, endpoint: Endpoint, tenant: str, namespace: str = "") -> bytes:
        """What a cache key covers besides query and body: schema version, tenant and namespace, model, version
        tag, endpoint.
        """
        head = self._key_heads.get((endpoint, tenant, namespace))
        if head is None:
            head = prefix(
                *(
                    KEY_SCHEMA,
                    tenant.encode(),
                    namespace.encode("utf-8", "surrogatepass"),
                    self.name.encode(),
                    self.version.encode(),
                    endpoint.path.encode(),
                )
            )
            if len(self._key_heads) < _KEY_HEADS:
                self._key_heads[(endpoint, tenant, namespace)] = head
        return head


class Route:
    """What a model name in a request leads to: the model, and the rewriting where the name is an alias."""

    __slots__ = ("alias", "model")

    def __init__(self, model: Model, alias: Alias | None) -> None:
        self.model = model
        self.alias = alias


class Fleet:
    """All routes of one configuration generation."""

    __slots__ = ("backends", "config", "generation", "models", "pooled", "routes")

    def __init__(self, generation: int, config: Config, models: tuple[Model, ...]) -> None:
        self.generation = generation
        self.config = config
        self.models = models
        self.backends = tuple(backend for model in models for backend in model.backends)
        #: those whose servers may sleep
        self.pooled = tuple(model for model in models if model.pool is not None)
        self.routes = {model.name: Route(model, None) for model in models}
        by_name = {model.name: model for model in models}
        for model in models:
            model.fallbacks = tuple(by_name[name] for name in config.models[model.name].fallbacks)
            for alias in config.models[model.name].aliases:
                self.routes[alias] = Route(model, Alias(alias, model.name))

    def route(self, name: str, caller: Caller = ANYONE) -> Route:
        """Where a model or alias leads for ``caller``; raises :class:`Fault` 404 for a name that was never configured,
        403 for a model that is not for this caller.
        """
        route = self.routes.get(name)
        if route is None:
            names = ", ".join([known for known, _ in self.routes_of(caller)][:50])
            raise Fault(
                Kind.MODEL_NOT_FOUND,
                f"the model '{name[:200]}' does not exist; there are: {names}",
                param="model",
            )
        if caller.models is not None and not caller.may_use(name, route.model.name):
            raise Fault(
                Kind.MODEL_FORBIDDEN,
                f"your API key does not have access to the model '{name}'",
                param="model",
            )
        return route

    def routes_of(self, caller: Caller) -> list[tuple[str, Route]]:
        """The names that ``caller`` may ask for, in the order of the configuration, and where they lead."""
        return [
            (name, route) for name, route in self.routes.items() if caller.may_use(name, route.model.name)
        ]


MakePool = Callable[[BackendConfig, UpstreamSettings], Pool | H2Pool]


def build(
    published: Published,
    environ: Mapping[str, str],
    make_pool: MakePool,
    previous: Fleet | None = None,
    via: str = "",
    table: PoolTable | None = None,
) -> Fleet:
    """The fleet of a published configuration; raises KeyError when a named secret is not in ``environ``.

    ``via``: what names this gateway to others that it asks. ``table``: where the states of pools stand; without it
    models are taken as if they had none.
    """
    config = published.config
    kept = {backend.identity: backend for backend in previous.backends} if previous is not None else {}
    models = []
    for name, model in config.models.items():
        backends = []
        for backend in model.backends:
            identity = f"{name}\n{backend.url}"
            key = (backend.url, backend.tls, backend.protocol, config.upstream)
            old = kept.get(identity)
            pool = old.pool if old is not None and old.key == key else make_pool(backend, config.upstream)
            secret = environ[backend.api_key_env] if backend.api_key_env else None
            made = Backend(
                published.indices[identity], backend, identity, secret, pool, key, config.node.zone, via
            )
            if old is not None:
                made.up, made.since_s, made.ramp = old.up, old.since_s, old.ramp
                made.waiting, made.kv, made.hint = old.waiting, old.kv, old.hint
                made.ewma, made.credit = old.ewma, old.credit
            elif model.pool is not None and table is not None:
                made.up = False  # until its row says that it is
            backends.append(made)
        limits = model.timeouts
        index = published.model_indices[name]
        view, at_most = None, 0
        if model.pool is not None and table is not None:
            view = PoolView(table, index, name, model.pool)
            at_most = 0 if places_itself(model) else model.pool.max
        models.append(
            Model(
                name,
                index,
                model.version,
                tuple(backends),
                timeouts=CallTimeouts(
                    limits.connect_s, limits.first_byte_s, limits.between_chunks_s, limits.total_s
                ),
                max_concurrent=model.max_concurrent,
                max_queue=model.max_queue,
                queue_timeout_s=model.queue_timeout_s,
                max_model_len=model.max_model_len,
                cache_mode=(model.cache or config.cache).mode,
                policy=model.policy,
                prefix_chars=model.prefix_chars,
                batching=BatchTerms.of(model.batching, config.limits.max_body),
                pool=view,
                shared_url=0 < len(backends) < at_most,
            )
        )
    return Fleet(published.generation, config, tuple(models))
