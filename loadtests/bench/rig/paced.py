"""The paced backend: a small HTTP/1.1 server that streams at the pace the request asks for. Run as a script.

The request's body steers it, in a field of its own (``bench``), so one backend serves every scenario:

====================  ==========================================================================================
``events``, ``pace_ms``  that many numbered events (see ``events``), the first at once, one each ``pace_ms``
``flood_bytes``       that many bytes of events as fast as the connection takes them
neither               the fixed completion, once the whole body is there
====================  ==========================================================================================

Strategy: a wheel of milliseconds instead of a timer per stream, and every event rendered once with its chunk head.
``GET /bench/stats`` tells what is open and what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections import defaultdict
from typing import Any, cast

import httptools
import uvloop

from .events import numbered
from .payload import completion

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_TICK_S = 0.001


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _plain(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


class Backend:
    """What all connections share: the wheel, rendered streams, and the counts."""

    def __init__(self) -> None:
        self.wheel: defaultdict[int, list[_Connection]] = defaultdict(list)
        self.open = self.streams = self.cut = self.sent_bytes = 0
        self._rendered: dict[int, list[bytes]] = {}
        self._reply = _plain(completion())
        self._done_ms = self.now_ms()

    @staticmethod
    def now_ms() -> int:
        """Return the wheel's clock."""
        return time.monotonic_ns() // 1_000_000

    def rendered(self, count: int) -> list[bytes]:
        """Return a stream's writes: the first carries the head, the last the end."""
        if count not in self._rendered:
            writes = [_chunk(event) for event in numbered(count)]
            writes[0] = _HEAD + writes[0]
            writes[-1] += _END
            self._rendered[count] = writes
        return self._rendered[count]

    def reply(self, path: bytes) -> bytes:
        """Return the answer to anything that is no stream."""
        if path == b"/bench/stats":
            names = ("open", "streams", "cut", "sent_bytes")
            return _plain(json.dumps({name: getattr(self, name) for name in names}).encode())
        if path == b"/metrics":
            return _plain(b"vllm:num_requests_waiting 0\n", b"text/plain")
        return self._reply

    def ask(self, due_ms: int, connection: _Connection) -> None:
        """Have a connection called at that millisecond, or at the next turn when it has passed."""
        self.wheel[max(due_ms, self._done_ms + 1)].append(connection)

    async def turn(self) -> None:
        """Send what is due, each millisecond, for ever."""
        while True:
            now_ms = self.now_ms()
            while self._done_ms < now_ms:
                self._done_ms += 1
                for connection in self.wheel.pop(self._done_ms, ()):
                    connection.due(self._done_ms)
            await asyncio.sleep(_TICK_S)


class _Connection(asyncio.Protocol):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self._path = b""
        self._writes: list[bytes] = []
        self._next = self._pace_ms = self._flood = 0
        self._streaming = self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._backend.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._backend.open -= 1
        if self._streaming:
            self._backend.cut += 1
            self._streaming = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url, []

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        asked = self._asked(b"".join(self._body))
        self._body = []
        if "events" in asked:
            self._writes, self._next = self._backend.rendered(int(asked["events"])), 0
            self._pace_ms = int(asked["pace_ms"])
            self._begin()
            self.due(self._backend.now_ms())
        elif "flood_bytes" in asked:
            self._flood = int(asked["flood_bytes"])
            self._begin()
            self._transport.write(_HEAD)
            self._pump()
        else:
            self._transport.write(self._backend.reply(self._path))

    @staticmethod
    def _asked(body: bytes) -> dict[str, Any]:
        marker = body.rfind(b'"bench":', max(0, len(body) - 256))
        if marker < 0:
            return {}
        found: dict[str, Any] = json.loads(body[marker + 8 : body.index(b"}", marker) + 1])
        return found

    def _begin(self) -> None:
        self._streaming = True
        self._backend.streams += 1

    def due(self, due_ms: int) -> None:
        """Send the event of that millisecond and ask for the one after it; lateness does not add up."""
        if not self._streaming:
            return
        data = self._writes[self._next]
        self._transport.write(data)
        self._backend.sent_bytes += len(data)
        self._next += 1
        if self._next < len(self._writes):
            self._backend.ask(due_ms + self._pace_ms, self)
        else:
            self._streaming = False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._flood:
            self._pump()

    def _pump(self) -> None:
        block = _chunk(b"".join(numbered(256)[:256]))
        while self._flood > 0 and not self._paused and not self._transport.is_closing():
            self._transport.write(block)
            self._backend.sent_bytes += len(block)
            self._flood -= len(block)
        if self._flood <= 0 and self._streaming:
            self._transport.write(_chunk(numbered(1)[-1]) + _END)
            self._streaming = False


async def _serve(port: int) -> None:
    backend = Backend()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _Connection(backend), "127.0.0.1", port, backlog=4096)
    gc.freeze()
    gc.disable()
    await backend.turn()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="the bench's paced backend")
    arguments.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(arguments.parse_args().port))
