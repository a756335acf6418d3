"""The controller: probes, discovery, sweeps, reloads, other nodes' flushes, the admin port. Never on a request's path.

Strategy: one process that keeps nothing of its own: verdicts are in the backend table, the configuration in its
file, counts in the segment. Kill it, and the next goes on where it was. It is the only writer of the backend table
and, after the first generation, of the configuration.

A reload is whole or not at all: read, checked, written, then its number published.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from urllib.parse import urlsplit

import msgspec
import uvloop

from ..cache.arena import Arena
from ..cache.pool_table import PoolTable
from ..cache.rows import CounterRow, Tally
from ..cache.segment import Segment, process_start
from ..cache.slots import claim, read_slot, sweep
from ..cache.table import BackendTable
from ..gateway.config import MAX_BACKENDS, Config, Layer, Published, Server
from ..gateway.memory import redis_settings
from ..gateway.metrics import Metrics
from . import admin, affinity, logs, scrape, store
from .answer import Answer
from .backend_scrape import BackendScrape
from .backends_admin import BackendsAdmin
from .board import Board
from .boot import READY, RELOADED, Inheritance, settle_memory
from .cache_admin import CacheAdmin
from .cache_stats import CacheStats
from .debug.hatch import Hatch
from .debug.pages import DebugPages
from .discovery import Discovery
from .expand import Found, expand
from .gpu_view import gpu_metrics
from .host import serve
from .in_force import in_force
from .invalidation import Invalidation
from .keys.sync import KeysSync
from .limits_sync import LimitsSync
from .live.far import ConfigRedis
from .live.file import ConfigFile
from .live.reloader import Refused, Reloader
from .load_watch import LoadWatch
from .pools.ground import Ground
from .pools.leases import shared_of
from .pools.runner import PoolsRunner
from .pools_admin import PoolsAdmin
from .probes import Prober
from .proxy_admin import ProxyAdmin
from .question import Question
from .source import Source
from .status import Status, package_version
from .status_compat import compat

log = logging.getLogger(__name__)

SWEEP_S = 1.0


def run_controller(mine: Inheritance, source: Source, cores: tuple[int, ...]) -> int:
    """Be the controller until told to leave; the exit status. `cores`: where to run, empty for anywhere."""
    logs.set_role("controller")
    affinity.pin(cores)
    segment = Segment.attach(mine.segment_fd)
    arena = Arena.attach(mine.arena_fd)
    published = store.read_current(mine.folder, segment)
    logs.set_level(published.config.log.level)
    pid = os.getpid()
    start = process_start(pid)
    assert start is not None
    slot = claim(segment, segment.geometry.controller, pid, start)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    hatch = Hatch(mine.folder, slot.index, slot.generation, loop)
    hatch.open()
    loop.run_until_complete(Controller(mine, source, segment, arena, published).run())
    hatch.close()
    slot.release()
    return 0


class Controller:
    """Needs a running loop."""

    def __init__(
        self, mine: Inheritance, source: Source, segment: Segment, arena: Arena, published: Published
    ) -> None:
        self._mine = mine
        self._source = source
        self._segment = segment
        self._published = published
        self._tally = Tally(segment)
        self._metrics = Metrics(CounterRow(segment, segment.geometry.controller))
        self._metrics.count(scrape.SWEPT, n=0)  # a rate begins with a sample
        self._board = Board(BackendTable(segment), time.monotonic_ns)
        self._backend_scrape = BackendScrape()
        self._prober = Prober(self._board, self._backend_scrape, mine.environ, self._probed)
        self._keys = KeysSync.of(mine.folder, segment, published.config.keys, mine.environ)
        keys = self._keys.report if self._keys is not None else None
        self._status = Status(segment, lambda: self._published, self._board.row, keys)
        self._autoscale = LoadWatch(
            segment, segment.geometry.slots // 2, self._status.worker_cpu_s, time.monotonic
        )
        self._backends = BackendsAdmin(segment, self._board, lambda: self._published, time.monotonic_ns)
        l2 = published.config.cache.l2
        self._invalidation = Invalidation(
            arena.epochs,
            redis_settings(l2, mine.environ) if l2 is not None else None,
            l2.prefix if l2 is not None else "",
            clock=time.monotonic,
            random=os.urandom,
        )
        shared = published.config.limits.redis
        self._limits = LimitsSync(
            segment,
            redis_settings(shared, mine.environ) if shared is not None else None,
            shared.prefix if shared is not None else "",
            mine.node.hex(),
            clock_ns=time.monotonic_ns,
        )
        self._cache_stats = CacheStats(segment, arena, self._invalidation, lambda: self._published)
        self._cache = CacheAdmin(
            arena, self._invalidation, lambda: self._published, lambda: time.time_ns() // 1_000_000
        )
        self._discovery = Discovery(
            lambda: self._published.told, published.found, self._discovered, time.monotonic
        )
        self._publishing = asyncio.Lock()
        far = published.config.store
        self._reloader = Reloader(
            ConfigFile(source.path),
            ConfigRedis.of(far, mine.environ, os.urandom) if far is not None else None,
            published.document,
            mine.state,
            lambda file, document: source.compose(file, document, mine.environ),
            self._apply,
            self._reloaded,
            lambda source: self._metrics.count(scrape.REFUSED, source),
        )
        for name in self._reloader.sources:
            self._metrics.count(scrape.REFUSED, name, n=0)
        self._leave = asyncio.Event()
        self._final = False
        ground = Ground(
            self._board,
            PoolTable(segment),
            self._tally,
            self._backend_scrape,
            self._metrics,
            lambda: self._published,
            self._placed,
            mine.environ,
            mine.state,
            time.monotonic_ns,
            lambda: [read_slot(segment, slot) for slot in range(segment.geometry.slots)],
        )
        together = shared_of(
            published.config.pools,
            mine.environ,
            mine.node.hex(),
            clock=time.monotonic,
            random=os.urandom,
            wall_s=time.time,
        )
        self._pools = PoolsRunner(ground, os.urandom(8).hex(), time.time_ns, shared=together)
        self._pools_admin = PoolsAdmin(self._pools, lambda: self._published)
        self._proxy = ProxyAdmin(
            self._pools_admin,
            lambda: self._published,
            self._pools.rooms.inventory.stats,
            time.monotonic,
            package_version(),
        )

    async def run(self) -> None:
        """Until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        loop.add_signal_handler(signal.SIGHUP, self._reloader.ask)
        loop.add_signal_handler(signal.SIGUSR1, self._end_all)
        await self._prober.swap(self._published)
        self._pools.swap(self._published)
        key_env = self._published.config.admin.key_env
        app = admin.AdminApp(self._routes(), self._mine.environ.get(key_env) if key_env else None)
        host = serve(app.__rsgi__, self._mine.listeners, loop=loop)
        settle_memory()
        with contextlib.suppress(BrokenPipeError):  # the supervisor has died: SIGTERM is on its way
            os.write(self._mine.ready_fd, READY)
        log.info("controller_ready generation=%d", self._published.generation)
        work = [
            self._sweeping,
            self._prober.run,
            self._reloader.run,
            self._discovery.run,
            self._invalidation.run,
            self._limits.run,
            self._pools.run,
            self._autoscale.run,
        ]
        if self._keys is not None:
            work.append(self._keys.run)
        tasks = [loop.create_task(one()) for one in work]
        leaving = loop.create_task(self._leave.wait())
        await asyncio.wait([leaving, *tasks], return_when=asyncio.FIRST_COMPLETED)
        host.stop()
        for task in tasks:
            if task.done():
                task.result()  # they end by failing only: so does the controller, and is replaced
            task.cancel()
        await self._pools.close(final=self._final)
        log.info("controller_left")

    def _end_all(self) -> None:
        """The gateway stops, not this controller alone: what pools run here ends too."""
        self._final = True

    def _routes(self) -> admin.Routes:
        return {
            admin.HEALTH: {"GET": self._alive},
            admin.METRICS: {"GET": self._scraped},
            admin.STATUS: {"GET": self._told},
            admin.CACHE_STATS: {"GET": self._counted},
            admin.CACHE_FLUSH: {"POST": self._cache.flush},
            admin.CACHE_ENTRIES: {"GET": self._cache.entry},
            admin.BACKENDS: {"GET": self._backends.told},
            admin.BACKENDS_DRAIN: {"POST": self._backends.drain},
            admin.BACKENDS_UNDRAIN: {"POST": self._backends.undrain},
            admin.POOLS: {"GET": self._pools_admin.told},
            admin.POOLS_WAKE: {"POST": self._pools_admin.wake},
            admin.POOLS_STOP: {"POST": self._pools_admin.stop},
            admin.POOLS_SWITCH: {"POST": self._pools_admin.switch},
            admin.PROXY_AVAILABLE: {"GET": self._proxy.available},
            admin.PROXY_RUNNING: {"GET": self._proxy.running},
            admin.PROXY_SWITCH: {"POST": self._proxy.switch},
            admin.PROXY_START: {"POST": self._proxy.start},
            admin.PROXY_STOP: {"POST": self._proxy.stop},
            admin.PROXY_STATS: {"GET": self._proxy.stats},
            admin.PROXY_METRICS: {"GET": self._scraped_here},
            admin.PROXY_VERSION: {"GET": self._proxy.version},
            **DebugPages(self._segment, self._mine.folder, f"penstock {package_version()}").routes(),
        }

    async def _alive(self, _: Question) -> Answer:
        return Answer(b'{"status":"ok"}')

    async def _scraped(self, question: Question) -> Answer:
        here = await self._scraped_here(question)
        return Answer(here.body + await self._backend_scrape.exposition(), scrape.CONTENT_TYPE)

    async def _scraped_here(self, _: Question) -> Answer:
        """Without what the backends say of themselves."""
        own = [
            *self._status.metrics(),
            *self._reloader.metrics(),
            *self._cache_stats.metrics(),
            *self._pools.metrics(),
        ]
        inventory = self._pools.rooms.inventory
        own += [
            *self._autoscale.metrics(),
            *gpu_metrics(await inventory.stats() if inventory.devices else ()),
        ]
        return Answer(scrape.render(self._segment, own), scrape.CONTENT_TYPE)

    async def _told(self, _: Question) -> Answer:
        published, rooms = self._published, self._pools.rooms
        reports = self._pools_admin.reports()
        more = compat(published, self._tally, reports, rooms.inventory.total_bytes, rooms.needs())
        more |= {"pools": reports, "configuration": in_force(published.told)}
        more["sources"] = self._reloader.report()
        return Answer(self._status.status(more))

    async def _counted(self, _: Question) -> Answer:
        return Answer.of(self._cache_stats.report())

    async def _sweeping(self) -> None:
        while True:
            for slot in sweep(self._segment):
                self._metrics.count(scrape.SWEPT)
                log.info("slot_swept slot=%d", slot)
            await asyncio.sleep(SWEEP_S)

    def _probed(self, backend: str, success: bool) -> None:
        self._metrics.count(scrape.PROBES, backend, "success" if success else "failure")

    def _reloaded(self, outcome: str) -> None:
        self._metrics.count(scrape.RELOADS, outcome)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._mine.ready_fd, RELOADED)

    async def _apply(self, config: Config, document: Layer | None) -> str:
        """Put a configuration in force; loaded, unchanged or failed. Raises Refused where there is no room for it."""
        async with self._publishing:
            old = self._published
            try:
                published = store.following(config, old, busy=self._busy())
            except store.Full as fault:
                raise Refused(str(fault)) from None
            paths = store.changed(old.told, config)
            if not paths:
                log.info("config_unchanged generation=%d", old.generation)
                return "unchanged"
            if not await self._publish(msgspec.structs.replace(published, document=document)):
                return "failed"
        logs.set_level(config.log.level)
        log.info("config_published generation=%d changed=%s", published.generation, ",".join(paths))
        self._discovery.look_again()
        return "loaded"

    async def _discovered(self, found: Found) -> None:
        """The servers behind the names that are looked up: another fleet, if they are others."""
        await self._found(found, logging.INFO)

    async def _placed(self, member: str, url: str) -> bool:
        """Where a member of a pool answers; whether workers can find it now."""
        parts = urlsplit(url)
        server = Server(address=parts.hostname or "", port=parts.port)
        # of every start of a server the log says enough already
        placed = await self._found({member: (server,)}, logging.DEBUG)
        return placed and member in self._published.found

    async def _found(self, found: Found, level: int) -> bool:
        async with self._publishing:
            old = self._published
            try:
                published = store.following(old.told, old, found, self._busy())
            except store.Full as fault:
                log.error("discovered_not_published generation=%d kept: %s", old.generation, fault)
                return False
            if published.config == old.config and published.found == old.found:
                return True
            if not await self._publish(published):
                return False
            log.log(level, "fleet_published generation=%d", published.generation)
            return True

    async def _publish(self, published: Published) -> bool:
        """Make a generation the current one; False where it cannot be written."""
        try:
            digest = store.write(self._mine.folder, published)
        except OSError as fault:
            log.error("config_not_written generation=%d kept: %s", published.generation - 1, fault.strerror)
            return False
        _, left_out = expand(published.told, published.found)
        if left_out:
            log.warning("backends_left_out count=%d: there can be %d", left_out, MAX_BACKENDS)
        self._published = published
        # Rows first: who sees the new number finds its backends in the table.
        await self._prober.swap(published)
        self._segment.publish_generation(published.generation, digest)
        self._pools.swap(published)
        return True

    def _busy(self) -> set[int]:
        """Columns of the tally in which requests are counted."""
        return {index for index in range(self._segment.geometry.backends) if self._tally.inflight(index)}
