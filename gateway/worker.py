"""What one worker's requests share, and what happens between them: health, reloads, deadlines, the drain.

``tick`` is called every 20 ms by the worker process; it costs a request nothing that there is one clock for all
deadlines. Knows shared memory and the pipeline; processes, signals and files are the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import xxhash

from ..cache.arena import Arena
from ..cache.gates import Gates
from ..cache.pool_table import PoolTable
from ..cache.rows import CounterRow, Tally, TallyRow
from ..cache.segment import Segment
from ..cache.table import DOWN, BackendTable
from .ack import AckMeter
from .admission import Admission
from .answer import Answering
from .batching import Batching
from .breakers import Breakers
from .buffers import Buffers
from .config import Config, Published
from .config.model import Backend as BackendConfig
from .config.model import BackendTls
from .config.structs import UpstreamSettings
from .dispatch import Dispatch
from .errors import shutting_down
from .fleet import Backend, build
from .flights import Flights
from .gc_watch import GcWatch
from .hints import take_in
from .hold import Hold
from .keepalive import KeepAlive
from .keys import Keyring, PublishedKeys
from .limits.limits import Limits
from .memory import Memory
from .metrics import CLIENTS, CONNECTIONS, CONNECTS, INFLIGHT, LAG, LAG_MAX, PAUSES, TASKS, Metrics
from .pipeline import Pipeline
from .pool_view import READY
from .recall import Recall
from .sharing import Sharing
from .sticky import Sticky
from .sweep import Sweep
from .telemetry.reporter import Reporter
from .turn import Turn
from .upstream.connector import Connector
from .upstream.dns import Resolver
from .upstream.h2_pool import H2Pool
from .upstream.origin import Origin
from .upstream.outbox import Outbox
from .upstream.pool import Pool
from .upstream.tls import TlsClient
from .watch import Watch

log = logging.getLogger(__name__)

TICK_S = 0.02
_HEALTH_EVERY = 5  # ticks
_SECOND = 50  # ticks
_LAG_WINDOW = 500  # ticks
#: What the backend table says of a pool's member that requests may go to; 0: it is in no pool.
_MAY_BE_ASKED = frozenset({0, READY})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Worker:
    """The data plane of one process. ``port`` is the TCP port it really serves, which a reload does not move."""

    def __init__(
        self,
        segment: Segment,
        slot: int,
        published: Published,
        *,
        workers: int,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        environ: Mapping[str, str],
        arena: Arena,
        generation: int,
        node: bytes,
        folder: Path,
        keys: PublishedKeys | None = None,
        is_admin_path: Callable[[str], bool] = lambda _: False,
        port: int | None = None,
    ) -> None:
        self.clock = clock
        #: this node among gateways that ask one another
        self.via = node.hex()
        #: None: everybody is served
        self.keyring = Keyring(keys, time.time) if keys is not None else None
        self.is_admin_path = is_admin_path
        self.draining = False
        self.debug = False
        self.meter = AckMeter()
        self.metrics = Metrics(CounterRow(segment, slot))
        #: None: nobody is told of requests
        self.reporter: Reporter | None = None
        self.watch = Watch(loop)
        self.keepalive = KeepAlive()
        self.turn = Turn(loop)
        self._outbox = Outbox(loop)
        self.sweep = Sweep(port if port is not None else published.config.listen.port, self.watch.clients)
        self.loop = loop
        self._environ = environ
        self._workers = workers
        self._gc = GcWatch(self.metrics)
        self._connected = self.metrics.histogram(CONNECTS)
        self.metrics.count(PAUSES, n=0)  # a rate begins with a sample
        self._row = TallyRow(segment, slot)
        self._tally = Tally(segment)
        self._table = BackendTable(segment)
        self._pools = PoolTable(segment)
        self._resolver = Resolver(loop=loop, clock=clock, ttl_s=published.config.upstream.dns_ttl_s)
        self._ids = count()
        self._id_prefix = os.urandom(8).hex()
        self._ticks = 0
        self._lag_max_ns = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.buffers = Buffers(self._row, self._tally, published.config.limits.max_buffered, workers)
        self.hold, self.release = self.buffers.hold, self.buffers.release
        self.fleet = build(published, environ, self._make_pool, via=self.via, table=self._pools)
        self._told = published.told
        config = published.config
        self.admission = Admission(self._row, self._tally, loop=loop, clock=clock, keys=segment.geometry.keys)
        self.memory = Memory(
            arena, segment, slot, generation, config.cache, environ, node=node, loop=loop, clock=clock
        )
        self.flights = Flights(
            segment,
            slot,
            generation,
            folder=folder,
            loop=loop,
            clock_ns=time.monotonic_ns,
            limit_bytes=config.cache.l1.max_entry,
            gather_bytes=config.limits.max_response,
            try_hold=self.buffers.try_hold,
            release=self.buffers.release,
        )
        sticky = Sticky(segment.sticky)
        settings = config.breaker
        self.breakers = Breakers(Gates(segment), time.monotonic_ns, settings.failures, settings.open_s)
        self.holding = Hold(self.admission, self.breakers, self.metrics, loop=loop, clock=clock)
        self.holding.swap(self.fleet.models)
        dispatch = self.dispatch = Dispatch(
            *(self._row, self._tally, slot, self.admission, self.holding),
            *(self.breakers, sticky, self.metrics),
            loop=loop,
            clock=clock,
        )
        self._answering = Answering(self.metrics, self.buffers, config.limits.max_response, loop)
        batching = Batching(dispatch, self._answering, self.buffers, self.metrics, loop=loop, clock=clock)
        dispatch.together = batching.send
        recall = Recall(self.memory.tiers, config.cache.l1.max_entry, _now_ms)
        self._sharing = Sharing(
            *(self.flights, recall, dispatch, self._answering, self.metrics, self.turn),
            lease_s=config.cache.l2.lease_ms / 1000 if config.cache.l2 else 0.0,
            clock=clock,
        )
        self.limits = Limits(
            *(segment, self._row, self._tally, self.metrics), workers=workers, clock_ns=time.monotonic_ns
        )
        self.pipeline = Pipeline(
            fleet=self.fleet,
            limits=self.limits,
            dispatch=dispatch,
            answering=self._answering,
            recall=recall,
            sharing=self._sharing,
            sticky=sticky,
        )
        self._observe_lag = self.metrics.histogram(LAG)
        self._read_health()
        self._report_to(config)

    async def start(self) -> None:
        """Listen for other workers' followers, and connect to Redis."""
        self._gc.start()
        await self.flights.start()
        self.memory.start()

    # ---- for requests

    def new_request_id(self) -> str:
        """Unique on this node and, by 64 random bits a process, elsewhere."""
        return f"{self._id_prefix}{next(self._ids):012x}"

    # ---- between requests

    def tick(self, now: float, lag_s: float) -> None:
        """Called every :data:`TICK_S`; ``lag_s`` is how much later than that it came."""
        self._ticks += 1
        lag_ns = max(0, int(lag_s * 1e9))
        self._observe_lag(lag_ns)
        self._lag_max_ns = max(self._lag_max_ns, lag_ns)
        fleet = self.fleet
        self.watch.tick(now, fleet.config.listen.write_timeout_s)
        self.sweep.tick(now, fleet.config.listen)
        self.admission.tick(now)
        self.keepalive.tick(now, fleet.config.listen.write_timeout_s)
        self.limits.tick()
        self.flights.tick(now)
        self.breakers.tick(fleet.backends)
        self.buffers.tick()
        for backend in fleet.backends:
            backend.pool.tick(now)
        if self._ticks % _HEALTH_EVERY == 0 or self.holding.rooms:
            self._read_health()
        self.holding.tick(now)
        if self._ticks % _SECOND == 0:
            self.debug = log.isEnabledFor(logging.DEBUG)
            self.metrics.gauge(LAG_MAX, value=self._lag_max_ns)
            self.metrics.gauge(INFLIGHT, value=self.inflight)
            self.metrics.gauge(CLIENTS, value=self.sweep.connections)
            self.memory.report(self.metrics)
            if self.reporter is not None:
                self.reporter.report()
            for backend in fleet.backends:
                pool = backend.pool
                self.metrics.gauge(CONNECTIONS, backend.name, "idle", value=pool.idle)
                self.metrics.gauge(CONNECTIONS, backend.name, "active", value=pool.active)
        if self._ticks % _LAG_WINDOW == 0:
            self._lag_max_ns = 0
        # they are counted one by one: seldom where there may be thousands
        if self._ticks % _LAG_WINDOW == _SECOND or not (self._ticks % _SECOND or self.inflight):
            self.metrics.gauge(TASKS, value=len(asyncio.all_tasks(self.loop)))

    def _read_health(self) -> None:
        now, health = self.clock(), self.fleet.config.health
        changed = False
        for backend in self.fleet.backends:
            state = self._table.read(backend.index)
            if state is None or state.identity != xxhash.xxh3_64_intdigest(backend.identity.encode()):
                continue  # never written, torn, or of another generation: the last good word stands
            up = state.health != DOWN and not state.drained and state.pool_state in _MAY_BE_ASKED
            take_in(backend, state, health, now)
            if up is not backend.up:
                backend.up = up
                changed = True
                log.debug("backend_%s backend=%s", "up" if up else "down", backend.name)
        for model in self.fleet.pooled:
            assert model.pool is not None
            members = model.pool.members
            model.pool.look()
            changed = changed or model.pool.members != members
        if changed:
            for model in self.fleet.models:
                model.count_places()

    def swap(self, published: Published) -> None:
        """Take a new configuration; requests in flight finish on what they began with."""
        old = self.fleet
        self.fleet = build(published, self._environ, self._make_pool, old, self.via, self._pools)
        self._resolver.ttl_s = published.config.upstream.dns_ttl_s
        self.pipeline.fleet = self.fleet
        self.admission.swap(self.fleet.models)
        self.holding.swap(self.fleet.models)
        limits, cache = published.config.limits, published.config.cache
        self.buffers.limit_bytes = limits.max_buffered
        self._report_to(published.config)
        self._answering.max_response = self.flights.gather_bytes = limits.max_response
        self.memory.swap(cache)
        self.breakers.forget()
        self.breakers.limit = published.config.breaker.failures
        self.breakers.open_ns = int(published.config.breaker.open_s * 1e9)
        self.breakers.tick(self.fleet.backends)
        self._read_health()
        kept = {backend.pool for backend in self.fleet.backends}
        for backend in old.backends:
            if backend.pool not in kept:
                self._close(backend)
        # another server of a pool is nothing that an operator did
        level = logging.DEBUG if published.told == self._told else logging.INFO
        self._told = published.told
        log.log(level, "configuration_loaded generation=%d", published.generation)

    def _report_to(self, config: Config) -> None:
        """Who is told of requests; those who were are told of what has ended."""
        before = self.reporter
        if before is not None:
            if before.serves(config):
                return
            before.end()
        access, traces = config.log.access, config.telemetry
        self.reporter = None
        if access is not None or traces is not None:
            self.reporter = Reporter(self._environ, self.via, self.metrics, access, traces)

    def swap_keys(self, published: PublishedKeys) -> None:
        """Take new API keys; who was let in with an old one is served to the end."""
        self.keyring = Keyring(published, time.time)

    def _close(self, backend: Backend) -> None:
        # calls in progress keep their own deadlines as long as somebody ticks their pool
        async def close() -> None:
            closing = self.loop.create_task(backend.pool.close(grace_s=24 * 3600.0))
            while not closing.done():
                await asyncio.wait({closing}, timeout=TICK_S)
                backend.pool.tick(self.clock())

        task = self.loop.create_task(close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- the drain

    def begin_drain(self) -> None:
        """``/ready`` turns 503 and every answer asks its client to close the connection."""
        self.draining = True

    def orphaned(self) -> None:
        """The supervisor has died, and the controller ends with it: nothing is woken for this node any more."""
        self.holding.orphaned = True

    @property
    def inflight(self) -> int:
        """Requests that are being answered, those of other workers' followers among them."""
        return len(self.watch) + self.flights.serving

    def cut(self) -> None:
        """End every request that is still open: streams by their error frame, waiters by 503."""
        self.watch.abort_all(shutting_down())

    async def close(self) -> None:
        """Close every upstream connection, and the cache."""
        self._gc.stop()
        self.turn.finish()
        for backend in self.fleet.backends:
            await backend.pool.close()
        self._resolver.close()
        self.sweep.close()
        self.meter.close()
        await self.memory.close()
        await self.flights.stop()
        if self.reporter is not None:
            await self.reporter.close()

    # ---- pools

    def _make_pool(self, config: BackendConfig, settings: UpstreamSettings) -> Pool | H2Pool:
        origin = Origin.parse(config.url)
        tls = None
        if origin.scheme == "https":
            wanted = config.tls or BackendTls()
            tls = TlsClient(
                clock=self.clock,
                ca=wanted.ca,
                insecure=wanted.insecure,
                server_name=wanted.server_name,
                session_s=settings.tls_session_s,
                alpn="h2" if config.protocol == "http2" else "http/1.1",
            )
        connector = Connector(
            loop=self.loop, clock=self.clock, resolver=self._resolver, tls=tls, opened=self._connected
        )
        connections = settings.connections
        share = self._workers
        if config.protocol == "http2":
            return H2Pool(
                origin,
                loop=self.loop,
                clock=self.clock,
                connector=connector,
                min_connections=-(-settings.http2.min_connections // share),
                max_connections=-(-settings.http2.max_connections // share),
                max_streams=settings.http2.max_streams,
                idle_s=connections.idle_s,
            )
        return Pool(
            origin,
            loop=self.loop,
            clock=self.clock,
            connector=connector,
            min_idle=-(-connections.min_idle // share),
            max_idle=-(-connections.max_idle // share),
            idle_s=connections.idle_s,
            outbox=self._outbox,
        )
