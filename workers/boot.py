"""A worker's composition root: takes what the supervisor handed down, builds the application, drives its life.

Strategy: one process, one loop, one application. A ticker of 20 ms is the only timer: it gives the application
its moment, beats the slot's heart, and notices a new configuration generation, which is loaded between requests;
one that cannot be loaded is refused whole and the old one stays. The worker tells the supervisor through a pipe
that it is ready, and that it is leaving.

Leaving, asked for by SIGTERM (also by the kernel, when the supervisor dies): the application announces it, accepting
goes on for `drain_delay_s`, then the listener closes and what is in flight finishes; one second before
`drain_timeout_s` what is still open is cut with an explanation. SIGUSR2 says that a successor accepts already on the
same listener: then this worker stops accepting at once and needs no announcement.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvloop

from ..cache.arena import Arena
from ..cache.segment import Segment, process_start
from ..cache.slots import Slot, SlotTaken, claim
from ..gateway.config import Published, tls_fault
from ..gateway.keys import PublishedKeys
from ..gateway.rsgi import App as RequestApp
from ..gateway.worker import Worker
from . import affinity, logs, store
from .admin import is_admin_path
from .debug.hatch import Hatch
from .forward import Forward
from .foundation import CONTROL
from .host import Host, RsgiApp, serve
from .keys.latest import LatestKeys
from .listeners import refuse_new

log = logging.getLogger(__name__)

READY = b"r"
LEAVING = b"l"
RELOADED = b"d"
"""What a child says through its pipe; the last is the controller's, whatever came of the reload."""
_TOLD_BY = (signal.SIGTERM, signal.SIGUSR2)
UNUSABLE = 1
"""The exit status of a worker that cannot serve what is configured."""
TICK_S = 0.02
SETTLE_S = 0.25
"""Time for handshakes under way to end and for new connections to send, before idle ones are closed."""
QUIET_S = 5.0
"""With nothing in flight for this long after the stop, half a request head does not hold up the end."""
CUT_BEFORE_S = 1.0
CLOSE_S = 2.0
"""For the polite end of upstream connections, when no request needs them any more."""
LAST_RESORT_S = 10.0
"""This long after the end of its drain a worker that still runs is ended by the kernel."""
GC_THRESHOLDS = (10_000, 5, 1_000)
"""What a request makes dies by its reference counts; the collector is for cycles alone. Its second generation is kept
small, so that a pass beside 5,000 open streams stays at milliseconds, and its last is looked at rarely."""


class App(Protocol):
    """What a worker runs: `penstock.gateway.worker.Worker`, or a test's stand-in."""

    @property
    def inflight(self) -> int: ...
    def tick(self, now: float, lag_s: float) -> None: ...
    def swap(self, published: Published) -> None: ...
    def swap_keys(self, published: PublishedKeys) -> None: ...
    async def start(self) -> None: ...
    def begin_drain(self) -> None: ...
    def orphaned(self) -> None: ...
    def cut(self) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Given:
    """What an application is built from. forward: serves the admin paths, where the API port has them; keys: None
    where everybody is served.
    """

    segment: Segment
    arena: Arena
    slot: int
    generation: int
    node: bytes
    folder: Path
    published: Published
    workers: int
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    environ: Mapping[str, str]
    forward: Callable[[Any, Any, str], Awaitable[int]] | None
    port: int | None = None
    keys: PublishedKeys | None = None


AppFactory = Callable[[Given], tuple[App, RsgiApp]]


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a child gets from the supervisor. ready_fd: the write end of its pipe; node: 16 bytes that name this
    gateway's life among all nodes; state: the folder of what outlives it (`pools.state`).
    """

    index: int
    workers: int
    core: int | None
    segment_fd: int
    arena_fd: int
    ready_fd: int
    folder: Path
    node: bytes
    listeners: Sequence[socket.socket]
    environ: Mapping[str, str]
    state: Path

    @property
    def descriptors(self) -> list[int]:
        """All descriptors the child must keep."""
        return [
            self.segment_fd,
            self.arena_fd,
            self.ready_fd,
            *(listener.fileno() for listener in self.listeners),
        ]


def gateway_app(given: Given) -> tuple[App, RsgiApp]:
    """The gateway itself, and what answers its requests."""
    worker = Worker(
        given.segment,
        given.slot,
        given.published,
        arena=given.arena,
        generation=given.generation,
        node=given.node,
        folder=given.folder,
        workers=given.workers,
        loop=given.loop,
        clock=given.clock,
        environ=given.environ,
        is_admin_path=is_admin_path if given.forward else lambda _: False,
        port=given.port,
        keys=given.keys,
    )
    return worker, RequestApp(worker, given.forward).__rsgi__


def run_worker(mine: Inheritance, app_factory: AppFactory = gateway_app) -> int:
    """Be worker `mine.index` until told to leave; the exit status."""
    logs.set_role(f"worker-{mine.index}")
    affinity.pin(() if mine.core is None else (mine.core,))
    affinity.batch()
    segment = Segment.attach(mine.segment_fd)
    arena = Arena.attach(mine.arena_fd)
    arena.populate()
    published = store.read_current(mine.folder, segment)
    logs.set_level(published.config.log.level)
    tls = published.config.listen.tls
    # Files change after they were checked; Granian, given a bad pair, ends the process with a backtrace.
    fault = tls_fault(tls) if tls else None
    if tls and fault:
        log.error("tls_unusable cert=%s key=%s: %s", tls.cert, tls.key, fault)
        return UNUSABLE
    keys = LatestKeys(mine.folder, segment) if segment.geometry.keys else None
    slot = _claim(segment, mine)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    forward = Forward(mine.folder / CONTROL) if published.config.admin.on_api_port else None
    given = Given(
        segment,
        arena,
        slot.index,
        slot.generation,
        mine.node,
        mine.folder,
        published,
        mine.workers,
        loop,
        time.monotonic,
        mine.environ,
        forward.serve if forward else None,
        next((one.getsockname()[1] for one in mine.listeners if one.family != socket.AF_UNIX), None),
        keys.first if keys else None,
    )
    app, answer = app_factory(given)
    _Life(mine, segment, slot, published, keys, app, answer, loop).run()
    slot.release()
    return 0


def _claim(segment: Segment, mine: Inheritance) -> Slot:
    """Either of the index's two slots: in a rolling restart the predecessor still has one."""
    pid = os.getpid()
    start = process_start(pid)
    assert start is not None
    try:
        return claim(segment, mine.index, pid, start)
    except SlotTaken:
        return claim(segment, mine.index + mine.workers, pid, start)


def settle_memory() -> None:
    """After start-up: what lives now lives for ever, the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Life:
    """From the first tick to the last response."""

    def __init__(
        self,
        mine: Inheritance,
        segment: Segment,
        slot: Slot,
        published: Published,
        keys: LatestKeys | None,
        app: App,
        answer: RsgiApp,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._mine = mine
        self._segment = segment
        self._slot = slot
        self._published = published
        self._seen = published.generation
        self._keys = keys
        self._app = app
        self._answer = answer
        self._loop = loop
        self._leave: asyncio.Future[bool] = loop.create_future()
        self._supervisor = os.getppid()

    def run(self) -> None:
        hatch = Hatch(self._mine.folder, self._slot.index, self._slot.generation, self._loop)
        hatch.open()
        self._loop.run_until_complete(self._app.start())
        listen = self._published.config.listen
        tls = (listen.tls.cert, listen.tls.key) if listen.tls else None
        # a signal that comes while uvloop does not run is lost: until it does, these wait
        signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD_BY)
        host = serve(
            self._answer,
            self._mine.listeners,
            loop=self._loop,
            http=listen.http,
            tls=tls,
            # one deadline of Granian's for both; the shorter one is kept by penstock.gateway.sweep
            idle_timeout_s=max(listen.read_timeout_s, listen.keep_alive_s),
            backpressure=listen.max_connections,
        )
        settle_memory()
        self._due = time.monotonic()
        self._tick()
        self._say(READY)
        log.info("worker_ready slot=%d generation=%d", self._slot.index, self._seen)
        self._loop.run_until_complete(self._until_left(host))
        hatch.close()

    def _told(self, replaced: bool) -> None:
        if os.getppid() != self._supervisor:
            self._app.orphaned()
        if not self._leave.done():
            self._leave.set_result(replaced)

    def _say(self, word: bytes) -> None:
        try:
            os.write(self._mine.ready_fd, word)
        except OSError:
            log.debug("supervisor_gone")  # its end of the pipe is closed; SIGTERM is on its way

    def _tick(self) -> None:
        now = time.monotonic()
        late_s, self._due = now - self._due, now + TICK_S
        self._loop.call_later(TICK_S, self._tick)
        try:
            if self._segment.generation != self._seen:
                self._load()
            news = self._keys.news(now) if self._keys is not None else None
            if news is not None:
                self._app.swap_keys(news)
                log.debug("keys_loaded generation=%d", news.generation)
            self._slot.heartbeat(time.monotonic_ns())
            self._app.tick(now, max(0.0, late_s))
        except Exception:
            log.exception("tick_failed")

    def _load(self) -> None:
        self._seen = self._segment.generation
        try:
            published = store.read_current(self._mine.folder, self._segment)
            self._app.swap(published)
        except Exception as fault:
            log.error(
                "config_kept generation=%d refused=%d: %s", self._published.generation, self._seen, fault
            )
            return
        self._published = published
        logs.set_level(published.config.log.level)

    async def _until_left(self, host: Host) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self._told, False)
        self._loop.add_signal_handler(signal.SIGUSR2, self._told, True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD_BY)
        replaced = await self._leave
        workers = self._published.config.workers
        end = self._loop.time() + workers.drain_timeout_s
        # An orphan has no supervisor that would lose patience with it.
        signal.setitimer(signal.ITIMER_REAL, workers.drain_timeout_s + LAST_RESORT_S)
        log.info("worker_leaving inflight=%d replaced=%s", self._app.inflight, replaced)
        self._say(LEAVING)
        if replaced:
            self._stop_accepting(host)
        self._app.begin_drain()
        # In a rolling restart this gives busy keep-alive clients an answer that says `Connection: close`, and
        # connections accepted a moment ago the time to send.
        await asyncio.sleep(max(workers.drain_delay_s, SETTLE_S if replaced else 0.0))
        if not replaced:
            refuse_new(self._mine.listeners)
            await asyncio.sleep(SETTLE_S)
            self._stop_accepting(host)
        host.stop()
        await self._finished(host, end - CUT_BEFORE_S)
        if not host.done.done() and self._app.inflight:
            log.warning("drain_cuts inflight=%d", self._app.inflight)
            self._app.cut()
            await self._finished(host, end)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.close(), CLOSE_S)
        log.info("worker_left inflight=%d", self._app.inflight)

    def _stop_accepting(self, host: Host) -> None:
        host.stop_accepting()
        for listener in self._mine.listeners:
            listener.close()

    async def _finished(self, host: Host, end: float) -> None:
        """Until every connection has ended, nothing has been in flight for a while, or `end`."""
        quiet_since = self._loop.time()
        while not host.done.done():
            now = self._loop.time()
            if self._app.inflight:
                quiet_since = now
            if now >= end or now - quiet_since >= QUIET_S:
                return
            await asyncio.wait([host.done], timeout=min(0.1, end - now))
