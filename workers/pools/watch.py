"""Whether a pool's servers that are ready still answer, and those that sleep are still there.

Strategy: a ready server is asked for its health each half second, over a connection of its own. One that refuses
connections, twice, is gone. One that does not answer is first taken out of rotation, so that requests for it wait;
only when it stays so for long does it count as gone, for a server that is busy may be silent for a moment. One that
sleeps is connected to and asked nothing, for a question might wake it. It refuses to know what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from ...gateway.config import Health
from ..backend_scrape import BackendScrape
from ..board import Board
from ..target import Target, TargetKey, Unanswered
from .servers import Server

log = logging.getLogger(__name__)

EVERY_S = 0.5
ANSWER_S = 1.25
"""With `EVERY_S` before it, a server that answers no more is noticed 1.75 s after its last answer."""
AGAIN_S = 0.1
GONE_S = 10.0
ASLEEP_EVERY_S = 2.0
_MOST_BYTES = 1 << 20


class Watch:
    """Watches the servers of one pool. Needs a running loop.

    silent: told of a server that does not answer, and again when it does. gone: told of one that is, with the reason;
    again and again, until it is watched no more or answers.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        health: Callable[[], Health],
        board: Board,
        scrape: BackendScrape,
        silent: Callable[[Server, bool], None],
        gone: Callable[[Server, str], None],
        *,
        gone_s: float = GONE_S,
    ) -> None:
        self._environ = environ
        self._health = health
        self._board = board
        self._scrape = scrape
        self._silent = silent
        self._gone = gone
        self._gone_s = gone_s
        self._watched: dict[tuple[str, int], tuple[Server, bool, Target, list[asyncio.Task[None]]]] = {}
        self._left: set[asyncio.Task[None]] = set()

    def look_at(self, awake: list[Server], asleep: list[Server]) -> None:
        """From now on watch these, and no others."""
        wanted = {(one.backend.url, one.index): (one, True) for one in awake}
        wanted |= {(one.backend.url, one.index): (one, False) for one in asleep}
        for key, (server, is_awake, target, tasks) in list(self._watched.items()):
            if wanted.get(key) != (server, is_awake):
                del self._watched[key]
                self._leave(target, tasks)
        for key, (server, is_awake) in wanted.items():
            if key not in self._watched:
                target = self.target(server)
                loops = [self._ask(server, target), self._read(server, target)]
                if not is_awake:
                    for one in loops:
                        one.close()
                    loops = [self._touch(server, target)]
                tasks = [asyncio.ensure_future(one) for one in loops]
                self._watched[key] = (server, is_awake, target, tasks)

    def target(self, server: Server) -> Target:
        """A server to be asked; the caller closes it."""
        backend = server.backend
        key = TargetKey(backend.url, backend.api_key_env, backend.tls, None, backend.protocol)
        target = Target(key, backend, self._environ)
        target.indices.add(server.index)
        return target

    def _leave(self, target: Target, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        self._scrape.forget(target)
        closing = asyncio.ensure_future(_close(target, tasks))
        self._left.add(closing)
        closing.add_done_callback(self._left.discard)

    async def close(self) -> None:
        """Watch nothing any more."""
        self.look_at([], [])
        if self._left:
            await asyncio.wait(list(self._left))

    # ---- awake

    async def _ask(self, server: Server, target: Target) -> None:
        clock = asyncio.get_running_loop().time
        good_s, is_silent = clock(), False
        while True:
            began = clock()
            fault = await self._probe(target)
            if fault is not None and fault.refused:
                await asyncio.sleep(AGAIN_S)
                fault = await self._probe(target)
                if fault is not None and fault.refused:
                    self._gone(server, str(fault))
            if fault is None:
                good_s = began
                if is_silent:
                    log.info("pool_server_answers backend=%s", target.name)
                    is_silent = False
                    self._silent(server, False)
            else:
                if not is_silent:
                    log.warning("pool_server_silent backend=%s: %s", target.name, fault)
                    is_silent = True
                    self._silent(server, True)
                if clock() - good_s >= self._gone_s:
                    self._gone(server, f"it has not answered for {self._gone_s:g} s: {fault}")
            await asyncio.sleep(max(0.0, EVERY_S - (clock() - began)))

    async def _probe(self, target: Target) -> _Fault | None:
        path = self._health().path
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            status, _ = await target.ask(path, timeout_s=ANSWER_S, most_bytes=_MOST_BYTES)
        except Unanswered as fault:
            if clock() - began >= ANSWER_S:
                return _Fault(f"{path} is not answered", False)
            if await _refuses(target.key.url):
                return _Fault("it refuses connections", True)
            return _Fault(f"{path}: {fault}", False)
        return None if 200 <= status < 300 else _Fault(f"{path} answered {status}", False)

    async def _read(self, server: Server, target: Target) -> None:
        """Its metrics, as other backends' are read."""
        while True:
            health = self._health()
            load = await self._scrape.ask(target, health.timeout_s)
            if load is not None:
                with contextlib.suppress(KeyError):  # a generation without it has come meanwhile
                    self._board.report([server.index], load)
            await asyncio.sleep(health.interval_s)

    # ---- asleep

    async def _touch(self, server: Server, target: Target) -> None:
        """Connect, and ask nothing."""
        while True:
            if await _refuses(target.key.url):
                await asyncio.sleep(AGAIN_S)
                if await _refuses(target.key.url):
                    self._gone(server, "it refuses connections")
            await asyncio.sleep(ASLEEP_EVERY_S)


class _Fault:
    __slots__ = ("refused", "text")

    def __init__(self, text: str, refused: bool) -> None:
        self.text = text
        self.refused = refused

    def __str__(self) -> str:
        return self.text


async def _refuses(url: str) -> bool:
    """Whether nobody listens there: a connection is refused, or its socket does not exist."""
    try:
        async with asyncio.timeout(ANSWER_S / 2):
            if url.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
            else:
                parts = urlsplit(url)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                _, writer = await asyncio.open_connection(parts.hostname, port)
            writer.close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, TimeoutError):
        return False
    return False


async def _close(target: Target, tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            log.error("pool_watch_failed backend=%s", target.name, exc_info=task.exception())
    await target.close()
