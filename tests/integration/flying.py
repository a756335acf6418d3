"""Workers of one node for tests of flights: real processes with a slot, a loop and the flights' socket each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvloop

from penstock.cache.digest import Key
from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.cache.slots import Slot, claim
from penstock.gateway.errors import Fault
from penstock.gateway.flight import UpstreamSink
from penstock.gateway.flights import Flights
from penstock.gateway.ticket import Member

_WATCHDOG_S = 60
_STOP_S = 10
_GEOMETRY = Geometry(slots=8, backends=1, models=1, counter_bytes=1024, gates=1)

MIB = 1 << 20


def key(n: int) -> Key:
    """The n-th question."""
    return Key(n.to_bytes(32, "little"))


def body_of(n: int, size: int) -> bytes:
    """A body in which every piece differs from every other."""
    return b"".join((n * 1_000_003 + i).to_bytes(8, "big") for i in range(size // 8))


class Side:
    """One worker, in this process: its flights, and the node's memory as far as it holds some."""

    def __init__(self, node: Node, slot: int, limit_bytes: int, free_bytes: int = 1 << 60) -> None:
        self.segment = Segment.attach(node.segment.fd)
        self.slot: Slot = claim(self.segment, slot, os.getpid(), 1)
        self.loop = asyncio.get_running_loop()
        self.held_bytes = 0
        self.free_bytes = free_bytes
        #: how far this worker's clock is ahead (ns)
        self.ahead_ns = 0
        self.flights = Flights(
            self.segment,
            slot,
            self.slot.generation,
            folder=node.folder,
            loop=self.loop,
            clock_ns=lambda: time.monotonic_ns() + self.ahead_ns,
            limit_bytes=limit_bytes,
            gather_bytes=64 * MIB,
            try_hold=self._try_hold,
            release=self._release,
        )

    def _try_hold(self, size: int) -> bool:
        if self.held_bytes + size > self.free_bytes:
            return False
        self.held_bytes += size
        return True

    def _release(self, size: int) -> None:
        self.held_bytes -= size
        assert self.held_bytes >= 0

    def beat(self) -> None:
        self.slot.heartbeat(time.monotonic_ns() + self.ahead_ns)

    async def _live(self) -> None:
        while True:
            self.beat()
            self.flights.tick(self.loop.time())
            await asyncio.sleep(0.02)


@asynccontextmanager
async def worker(
    node: Node, slot: int, *, limit_bytes: int = 2 * MIB, free_bytes: int = 1 << 60
) -> AsyncIterator[Side]:
    """A worker in this process that listens and ticks until the block ends."""
    side = Side(node, slot, limit_bytes, free_bytes)
    side.beat()
    await side.flights.start()
    living = asyncio.create_task(side._live())
    try:
        yield side
    finally:
        living.cancel()
        with contextlib.suppress(TimeoutError):  # one that hangs never takes what it is sent
            await asyncio.wait_for(side.flights.stop(), _STOP_S)
        side.segment.close()


Script = Callable[[Side, "Talk"], Awaitable[None]]


class Talk:
    """A process's end of two pipes: lines to and from the other."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write
        self._rest = b""

    def say(self, line: str) -> None:
        os.write(self._write, line.encode() + b"\n")

    async def hear(self) -> str:
        """The next line; "" when the other is gone."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._rest:
            readable = loop.create_future()
            loop.add_reader(self._read, lambda future=readable: future.done() or future.set_result(None))
            try:
                await readable
            finally:
                loop.remove_reader(self._read)
            data = os.read(self._read, 4096)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Peer(Talk):
    """A worker in a process of its own that runs `script`, then stays until it is killed at the block's end."""

    def __init__(self, node: Node, slot: int, script: Script, limit_bytes: int = 2 * MIB) -> None:
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(_WATCHDOG_S)
                os.close(down[1])
                os.close(up[0])
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(self._run(node, slot, script, Talk(down[0], up[1]), limit_bytes))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(down[0])
        os.close(up[1])
        super().__init__(up[0], down[1])
        self._reaped = False

    @staticmethod
    async def _run(node: Node, slot: int, script: Script, talk: Talk, limit_bytes: int) -> None:
        async with worker(node, slot, limit_bytes=limit_bytes) as side:
            await script(side, talk)
            await asyncio.Event().wait()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9 and reap."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._reaped = True


class Node:
    """The segment and the run directory that all workers share; make peers before a loop runs here."""

    def __init__(self) -> None:
        self.segment = Segment.create(None, _GEOMETRY, owner_pid=os.getpid(), owner_start=1)
        # one more worker, that does nothing: a lone one would set no marks
        claim(self.segment, _GEOMETRY.slots - 1, os.getpid(), 1)
        self.folder = Path(
            tempfile.mkdtemp(prefix="fl-")
        )  # short: a Unix socket's path has 107 bytes at most
        self._peers: list[Peer] = []

    def peer(self, slot: int, script: Script, *, limit_bytes: int = 2 * MIB) -> Peer:
        peer = Peer(self, slot, script, limit_bytes)
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.kill()
            peer.close()
        self.segment.close()
        shutil.rmtree(self.folder)


@contextmanager
def a_node() -> Iterator[Node]:
    """A node that leaves no process and no file."""
    node = Node()
    try:
        yield node
    finally:
        node.close()


class Client:
    """A member's sink that remembers what it got; `ended` resolves with how it ended."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.got: list[bytes] = []
        self.size = 0
        self.ended: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()

    def on_data(self, data: bytes) -> None:
        self.got.append(data)
        self.size += len(data)

    def on_end(self) -> None:
        self.ended.set_result(None)

    def on_fail(self, fault: Fault) -> None:
        self.ended.set_result(fault)

    @property
    def body(self) -> bytes:
        return b"".join(self.got)


class Feed:
    """What feeds a flight, by hand; `paused` as the flight wants it."""

    def __init__(self) -> None:
        self.paused = False

    def attach(self, sink: UpstreamSink) -> None:
        return

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


async def until(true: Callable[[], object]) -> None:
    """Give other tasks and processes turns until the condition holds; the tests' watchdog bounds it."""
    while not true():  # noqa: ASYNC110 - what is waited for happens in other processes too
        await asyncio.sleep(0.005)
