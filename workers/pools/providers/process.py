"""The provider `process`: any command that runs on this machine.

Strategy: a server is a process of its own session whose record is in the state folder, so whoever comes next finds it
again: this provider after a reload, the next controller, the next gateway. It listens on a port that was free a moment
before, appends to a log of its own, and is ready when its health path says so. When it ends, however that comes, all
that came of it is ended before the next is started. It refuses to know when any of this is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

from ....gateway.config import Config
from ....gateway.config.pool import ProcessPool
from ..processes import kin, output, record, surroundings
from ..processes.child import LOOK_S, Child, new_mark, reap
from ..processes.ports import Ports, is_free
from ..processes.record import Record
from ..ready import until_ready
from .base import Order, Provider, ProviderFault, Running

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A server that ends because somebody took its port is started again on another so often."""
TEND_S = 5.0


class ProcessProvider(Provider):
    """The processes of one pool. Needs a running loop.

    config: the whole one, for what is secret in it. state: this gateway's state folder. ports: one for all pools, or
    two servers that start might be given the same.
    """

    local = True

    def __init__(
        self,
        name: str,
        pool: ProcessPool,
        config: Config,
        *,
        environ: Mapping[str, str],
        state: Path,
        ports: Ports,
    ) -> None:
        super().__init__()
        self.keep = pool.keep
        self._name = name
        self._pool = pool
        self._config = config
        self._environ = environ
        self._state = state
        self._digest = surroundings.digest(pool, name)
        self._ports = ports
        self._children: dict[int, Child] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        """One that runs already is waited for; else one is started, on another port where its own was taken."""
        async with self._lock(member):
            loop = asyncio.get_running_loop()
            until = loop.time() + timeout_s
            child = await self._found(member)
            for attempt in range(1, ATTEMPTS + 1):
                if child is None:
                    child = self._start(member, order)
                fault = await self._healthy(child, until, timeout_s)
                if fault is None:
                    self._watch(member, child)
                    return self._running(child.record)
                taken = child.exited.done() and not is_free(child.record.port)
                await child.end(0.0)
                if not taken or attempt == ATTEMPTS or loop.time() >= until:
                    raise ProviderFault(fault)
                log.warning(
                    "pool_port_taken pool=%s member=%d port=%d: %s",
                    self._name,
                    member,
                    child.record.port,
                    fault,
                )
                child = None
        raise AssertionError("unreachable")

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        async with self._lock(member):
            child = self._forget(member)
            known = child.record if child is not None else record.read(self._state, self._name, member)
            if child is None or child.exited.done():
                child = self._open(known)
            if child is not None:
                await child.end(timeout_s)
            elif known is not None:
                await self._see_off(known)

    async def status(self) -> Mapping[int, Running]:
        found: dict[int, Running] = {}
        for one in await asyncio.to_thread(lambda: list(record.read_all(self._state))):
            if one.model != self._name:
                continue
            if one.member in self._children:
                found[one.member] = self._running(self._children[one.member].record)
                continue
            child = None if one.ending else self._open(one)
            if child is None:
                self._begin(self._clear(one))
                continue
            self._watch(one.member, child)
            found[one.member] = self._running(child.record)
        return found

    def pids(self, member: int) -> Collection[int]:
        child = self._children.get(member)
        return kin.kin_of(child.record) if child is not None else ()

    async def close(self) -> None:
        for task in [*self._work, *([self._tending] if self._tending else [])]:
            task.cancel()
        if self._work:
            await asyncio.wait(list(self._work))
        for member in list(self._children):
            child = self._forget(member)
            if child is not None:
                child.close()

    # ---- starting

    def _start(self, member: int, order: Order) -> Child:
        pool = self._pool
        try:
            port = self._ports.take()
            planned = Record(
                model=self._name,
                member=member,
                pid=0,
                start=0,
                boot="",
                port=port,
                mark=new_mark(),
                digest=self._digest,
                gpus=order.gpus,
                keep=pool.keep,
                stop_timeout_s=pool.stop_timeout_s,
            )
            environ = surroundings.environment(self._config, pool, self._environ, order.gpus)
            argv = surroundings.arguments(pool, self._name, port)
            child = Child.start(argv, environ, self._state, planned, self._log_of(member))
        except (OSError, ValueError) as fault:
            raise ProviderFault(f"the process cannot be started: {fault}") from None
        log.info(
            "pool_process pool=%s member=%d pid=%d port=%d log=%s",
            self._name,
            member,
            child.record.pid,
            port,
            self._log_of(member),
        )
        return child

    async def _healthy(self, child: Child, until: float, timeout_s: float) -> str | None:
        """Wait until it answers; None then, else why it does not."""
        url, path = self._running(child.record).url, self._config.health.path
        key = self._environ.get(self._pool.api_key_env) if self._pool.api_key_env else None
        assert url is not None
        asking = asyncio.create_task(until_ready(url, path=path, api_key=key))
        ended = asyncio.create_task(_done(child.exited))
        try:
            async with asyncio.timeout_at(until):
                await asyncio.wait([asking, ended], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            said = self._said(child.record.member)
            return f"the process did not answer {path} within {timeout_s:g} s{said}"
        except asyncio.CancelledError:
            child.close()  # it goes on; whoever wants it finds it by its record
            raise
        finally:
            for task in (asking, ended):
                task.cancel()
            await asyncio.wait([asking, ended])
        if child.exited.done():
            return f"the process {child.exited.result()} before it was ready{self._said(child.record.member)}"
        return None

    def _said(self, member: int) -> str:
        line = output.last_line(self._log_of(member))
        return f": {line}" if line else ""

    def _log_of(self, member: int) -> Path:
        return output.path_of(self._state, self._name, member)

    # ---- those that run

    def _running(self, one: Record) -> Running:
        return Running(f"http://127.0.0.1:{one.port}", one.gpus, one.digest != self._digest)

    async def _found(self, member: int) -> Child | None:
        """The member's process that runs already; one that is ending is seen off first."""
        child = self._forget(member)
        if child is not None and not child.exited.done():
            return child
        known = record.read(self._state, self._name, member)
        if known is None:
            return None
        child = None if known.ending else self._open(known)
        if child is None:
            await self._see_off(known)
        return child

    def _open(self, known: Record | None) -> Child | None:
        """The process of a record; None when it is gone. What it may have left behind is not looked at."""
        if known is None or not kin.is_alive(known):
            return None
        try:
            return Child(known, self._state)
        except OSError:
            return None

    def _watch(self, member: int, child: Child) -> None:
        self._children[member] = child
        child.exited.add_done_callback(lambda _: self._exited(member, child))
        if child.exited.done():
            return
        if self._tending is None:
            self._tending = asyncio.ensure_future(self._tend())

    def _exited(self, member: int, child: Child) -> None:
        if self._children.get(member) is not child:
            return
        del self._children[member]
        reason = f"the process {child.exited.result()}{self._said(member)}"
        self._begin(self._bury(member, child))
        self.ended(member, reason)

    async def _bury(self, member: int, child: Child) -> None:
        async with self._lock(member):
            await child.bury()

    async def _clear(self, known: Record) -> None:
        async with self._lock(known.member):
            if record.read(self._state, self._name, known.member) == known:
                await self._see_off(known)

    async def _see_off(self, known: Record) -> None:
        """End what is left of a process that is gone, or was told to end."""
        child = self._open(known)
        if child is not None:
            await child.end(known.stop_timeout_s)
            return
        while family := await asyncio.to_thread(kin.kin_of, known):
            kin.send(family, kin.KILL)
            await asyncio.sleep(LOOK_S)
        reap(known.pid)
        record.remove(self._state, known)

    def _forget(self, member: int) -> Child | None:
        return self._children.pop(member, None)

    def _lock(self, member: int) -> asyncio.Lock:
        return self._locks.setdefault(member, asyncio.Lock())

    def _begin(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(doing)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _tend(self) -> None:
        """Keep logs from growing without end, and what runs on record where somebody removed that."""
        while True:
            await asyncio.sleep(TEND_S)
            for member, child in list(self._children.items()):
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(output.cut, self._log_of(member))
                    known = await asyncio.to_thread(record.read, self._state, self._name, member)
                    if known is None and self._children.get(member) is child:
                        record.write(self._state, child.record)


async def _done(future: asyncio.Future[str]) -> None:
    await asyncio.shield(future)
