"""A gateway's data plane, whole and real, on a loop of its own in a thread of the test's process.

Same Worker, same App, same server host as in a worker process; what it gives over `penstock serve` is that a test
can look at the objects inside: tally, pools, tasks, what was handed to whom.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop
import yaml

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.layout import Geometry
from penstock.cache.rows import Tally
from penstock.cache.segment import Segment, process_start
from penstock.cache.slots import claim
from penstock.gateway.config import Published, load
from penstock.gateway.rsgi import App
from penstock.gateway.worker import TICK_S, Worker
from penstock.workers.host import Host, serve
from penstock.workers.listeners import listen_tcp

from .procs import WaitFailed, free_port, wait_until

T = TypeVar("T")


class DataPlane:
    """One worker on 127.0.0.1:`port`. `ticks` may be switched off to make time stand still for its deadlines."""

    def __init__(self, config: dict[str, Any]) -> None:
        start = process_start(os.getpid())
        assert start is not None
        self.port = free_port()
        # a test that says nothing of the cache or of breakers wants its requests to reach a backend
        whole = {
            "cache": {"mode": "off"},
            "breaker": {"failures": 1000},
            **config,
            "listen": {"host": "127.0.0.1", **config.get("listen", {}), "port": self.port},
        }
        self.published = published(yaml.safe_dump(whole, sort_keys=False))
        self.segment = Segment.create(
            None,
            Geometry(slots=2, backends=8, models=8, counter_bytes=65536),
            owner_pid=os.getpid(),
            owner_start=start,
        )
        self.tally = Tally(self.segment)
        self.loop = uvloop.new_event_loop()
        self.trouble: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.trouble.append(repr(context)))
        l1 = self.published.config.cache.l1
        self.arena = Arena.create(None, ArenaGeometry.of(l1.size or 32 << 20, l1.max_entry, 2), 0)
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-test-flights-"))
        self.slot = claim(self.segment, 0, os.getpid(), start)
        self.worker = Worker(
            self.segment,
            0,
            self.published,
            arena=self.arena,
            generation=self.slot.generation,
            node=os.urandom(16),
            folder=self.folder,
            workers=1,
            loop=self.loop,
            clock=time.monotonic,
            environ=os.environ,
        )
        self.app = App(self.worker)
        self.ticks = True
        self._listener = listen_tcp("127.0.0.1", self.port)
        self._host: Host | None = None
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)
        self._log = _Keeper(self.trouble)

    # ---- its life

    def __enter__(self) -> "DataPlane":
        logging.getLogger().addHandler(self._log)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            logging.getLogger().removeHandler(self._log)

    def _end(self) -> None:
        host = self._host
        assert host is not None
        self.call(host.stop_accepting)
        self.call(host.stop)
        try:
            wait_until(host.done.done, 10, "the server's end")
        finally:
            asyncio.run_coroutine_threadsafe(self.worker.close(), self.loop).result(10)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self._listener.close()
            self.loop.close()
            self.slot.release()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.worker.start())
        self._host = serve(self.app, [self._listener], loop=self.loop)
        self._tick()
        self.loop.run_forever()

    def _tick(self) -> None:
        self.loop.call_later(TICK_S, self._tick)
        if self.ticks:
            self.worker.tick(time.monotonic(), 0.0)

    # ---- looking inside

    def call(self, function: Callable[[], T]) -> T:
        """What `function` gives when it is called on the loop."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return result.result(30)

    def state(self) -> dict[str, int]:
        """Everything that is counted while requests live."""

        def look() -> dict[str, int]:
            backends = self.worker.fleet.backends
            models = self.worker.fleet.models
            return {
                "requests": self.worker.inflight,
                "waiting": self.worker.admission.waiting,
                "holding": self.worker.holding.waiting,
                "following": self.worker.holding.following,
                "calls": sum(backend.pool.active for backend in backends),
                "inflight": sum(self.tally.inflight(backend.index) for backend in backends),
                "running": sum(self.tally.running(model.index) for model in models),
                "queued": sum(self.tally.queued(model.index) for model in models),
                "demand": sum(self.tally.waiting(model.index) for model in models),
                "held": self.tally.held_total(),
                "tasks": len([t for t in asyncio.all_tasks(self.loop) if not t.done()]),
            }

        return self.call(look)

    def wait_settled(self, timeout_s: float = 20.0) -> None:
        """Wait until nothing is counted, nothing runs and nothing is connected to a backend but idle connections."""
        try:
            wait_until(lambda: not any(self.state().values()), timeout_s, "everything at zero")
        except WaitFailed:
            raise WaitFailed(f"left behind: {self.state()}") from None

    def wait_for(self, timeout_s: float = 20.0, **wanted: int) -> None:
        """Wait until `state()` has these values."""
        wait_until(
            lambda: wanted.items() <= self.state().items(), timeout_s, f"{wanted}, last seen {self.state()}"
        )

    def statuses(self) -> dict[str, int]:
        """Requests counted so far, by status; those whose answers have come are."""
        from penstock.cache.rows import read_counters

        for _ in range(2):  # they are counted in the turn of the loop after the one that answers
            self.call(lambda: None)
        counted: dict[str, int] = {}
        for name, cells in read_counters(self.segment, 0):
            family, labels = _series(name)
            if family == "penstock_requests_total":
                counted[labels[2]] = counted.get(labels[2], 0) + cells[0]
        return counted

    def assert_no_trouble(self) -> None:
        """No error was logged, no exception got lost on the loop."""
        assert self.trouble == []


def _series(name: bytes) -> tuple[str, list[str]]:
    import msgspec

    family, labels = msgspec.msgpack.decode(name)
    return family, labels


class _Keeper(logging.Handler):
    """Keeps what is logged as an error, or with a traceback."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self._kept.append(logging.Formatter().format(record))


def published(text: str) -> Published:
    """This configuration as the supervisor would publish it."""
    config = load(text, os.environ)
    names = [f"{name}\n{b.url}" for name, model in config.models.items() for b in model.backends]
    return Published(
        config=config,
        indices={name: index for index, name in enumerate(names)},
        model_indices={name: index for index, name in enumerate(config.models)},
        generation=1,
    )


@contextmanager
def data_plane(config: dict[str, Any]) -> Iterator[DataPlane]:
    """A running data plane that must be at zero, and have logged no error, at the end."""
    with DataPlane(config) as plane:
        yield plane
        plane.wait_settled()
        plane.assert_no_trouble()
