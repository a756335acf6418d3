"""A TCP relay on loopback whose answers come later than they were sent."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .procs import free_port


class SlowLine:
    """`delay_s` may be changed at any time, and the order of the answers stays."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        self._to_port = to_port
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back, slow=False), self._carry(there, writer, slow=True))
        finally:
            self._ends -= {writer, back}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        try:
            while data := await reader.read(65536):
                due = max(due, loop.time() + self.delay_s) if slow else 0.0
                loop.call_at(due, writer.write, data)
        except ConnectionError:
            pass
        finally:
            loop.call_at(due, writer.close)

    def cut(self) -> None:
        """Break every connection; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def run(self, ready: Callable[[Callable[[], object]], object]) -> None:
        """Serve until what `ready` was given is called, from any thread."""
        self._loop, over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        ready(lambda loop=self._loop: loop.call_soon_threadsafe(over.set))
        await over.wait()
        server.close()
        self._abort()


@contextmanager
def slow_line(to_port: int) -> Iterator[SlowLine]:
    """A relay to a port of this host, in a thread of its own."""
    line = SlowLine(to_port)
    ready: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    thread = threading.Thread(target=asyncio.run, args=(line.run(ready.put),))
    thread.start()
    end = ready.get()
    try:
        yield line
    finally:
        end()
        thread.join()
