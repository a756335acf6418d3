"""Clients that keep asking a gateway while something is done to it, and remember what they were answered."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Load:
    """`answered`: by status; `refusals`: the bodies of those that were not 200. `lost`: requests that ended any
    other way, with the reason.

    A request on a connection that had served before and is closed without one byte is sent again on a new one, as
    RFC 9112 (9.3.1) has clients do; everything else counts.
    """

    def __init__(
        self, port: int, model: str, *, stream: bool = False, fresh: bool = False, text: str = "go on"
    ) -> None:
        self.answered: Counter[int] = Counter()
        self.lost: list[str] = []
        self.resent = 0
        self.refusals: list[bytes] = []
        self._port = port
        self._fresh = fresh
        self._stream = stream
        body = json.dumps(
            {
                "model": model,
                "stream": stream,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": 8,
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        if fresh:
            head += "connection: close\r\n"
        self._request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._stop = asyncio.Event()

    @property
    def done(self) -> int:
        """Requests that have ended."""
        return sum(self.answered.values()) + len(self.lost)

    def stop(self) -> None:
        """No client begins another request."""
        self._stop.set()

    async def client(self) -> None:
        """One client, until `stop`."""
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            reused = connection is not None
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                status, keep = await self._ask(*connection)
            except _Nothing:
                if reused:
                    self.resent += 1
                else:
                    self.lost.append("closed without an answer")
                keep = False
            except (OSError, asyncio.IncompleteReadError, ValueError) as fault:
                self.lost.append(repr(fault))
                keep = False
            else:
                self.answered[status] += 1
            if (not keep or self._fresh) and connection is not None:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bool]:
        writer.write(self._request)
        try:
            line = await reader.readline()
        except ConnectionError:
            raise _Nothing from None
        if not line:
            raise _Nothing
        status = int(line.split()[1])
        headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        if status != 200:
            self.refusals.append(body)
        if self._stream and status == 200 and b"[DONE]" not in body and b'"error"' not in body:
            raise ValueError("the stream was cut without a word")
        return status, headers.get("connection") != "close"


class _Nothing(Exception):
    """The connection was closed, or could not be written to, before one byte of an answer."""


@asynccontextmanager
async def load(
    port: int, model: str, clients: int, *, stream: bool = False, fresh: bool = False, text: str = "go on"
) -> AsyncIterator[Load]:
    """`clients` clients asking all the time; at the end all have ended."""
    made = Load(port, model, stream=stream, fresh=fresh, text=text)
    tasks = [asyncio.create_task(made.client()) for _ in range(clients)]
    try:
        yield made
    finally:
        made.stop()
        await asyncio.gather(*tasks)
