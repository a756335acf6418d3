"""Clients that ask at a rate, whatever becomes of the answers, and remember each one."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

_TICK_S = 0.005
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_BACKEND = re.compile(rb"\r\nx-penstock-backend: ([^\r]+)\r\n")
#: An answer that never came.
LOST = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: when it was sent and done (s, the loop's clock), how it ended, and who answered."""

    sent: float
    done: float
    status: int
    backend: str


class Paced:
    """`rate` requests a second on as many connections as that takes."""

    def __init__(self, port: int, model: str, rate: float) -> None:
        self.answers: list[Answered] = []
        self._port = port
        self._rate = rate
        body = (
            b'{"model":"%b","messages":[{"role":"user","content":"go on"}],"max_tokens":8}' % model.encode()
        )
        self.request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        self.idle: list[_Client] = []
        self.clients: set[_Client] = set()
        self.asked = 0
        self._opening: set[asyncio.Task[None]] = set()

    def statuses(self, answers: Iterable[Answered] | None = None) -> Counter[int]:
        """How many ended how."""
        return Counter(one.status for one in (self.answers if answers is None else answers))

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop`, then wait for the answers."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not stop.is_set():
            due = int((loop.time() - began) * self._rate) - self.asked
            for _ in range(due):
                self._ask(loop)
            await asyncio.sleep(_TICK_S)
        async with asyncio.timeout(60):
            while len(self.answers) < self.asked:  # noqa: ASYNC110 - a count, no event
                await asyncio.sleep(_TICK_S)
        for client in list(self.clients):
            client.close()

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked += 1
        sent = loop.time()
        if self.idle:
            self.idle.pop().ask(sent)
        else:
            task = loop.create_task(self._open(loop, sent))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, loop: asyncio.AbstractEventLoop, sent: float) -> None:
        try:
            _, client = await loop.create_connection(lambda: _Client(self, loop), "127.0.0.1", self._port)
        except OSError:
            self.answers.append(Answered(sent, loop.time(), LOST, ""))
        else:
            client.ask(sent)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, of: Paced, loop: asyncio.AbstractEventLoop) -> None:
        self._of = of
        self._loop = loop
        self._sent: float | None = None
        self._got = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._of.clients.add(self)

    def ask(self, sent: float) -> None:
        self._sent = sent
        self._got = b""
        self._transport.write(self._of.request)

    def data_received(self, data: bytes) -> None:
        self._got = got = self._got + data
        head = got.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(got, 0, head + 2)
        assert length is not None, got[:200]
        if len(got) < head + 4 + int(length[1]):
            return
        backend = _BACKEND.search(got, 0, head + 2)
        self._end(int(got[9:12]), backend[1].decode() if backend is not None else "")
        self._of.idle.append(self)

    def _end(self, status: int, backend: str) -> None:
        sent, self._sent = self._sent, None
        if sent is not None:
            self._of.answers.append(Answered(sent, self._loop.time(), status, backend))

    def connection_lost(self, exc: Exception | None) -> None:
        self._of.clients.discard(self)
        if self in self._of.idle:
            self._of.idle.remove(self)
        self._end(LOST, "")

    def close(self) -> None:
        self._transport.close()


@asynccontextmanager
async def paced(port: int, model: str, rate: float) -> AsyncIterator[Paced]:
    """Clients that ask all the while; at the end all have been answered."""
    made, stop = Paced(port, model, rate), asyncio.Event()
    task = asyncio.create_task(made.run(stop))
    try:
        yield made
    finally:
        stop.set()
        await task
