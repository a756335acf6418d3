"""Clients of several tenants that keep asking: cheap enough to overload a gateway from within a test."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from contextlib import suppress

from penstock.gateway.keys import hashed


def secret_of(tenant: str) -> str:
    """A tenant's API key."""
    return "pk-" + tenant.ljust(40, "x")


def key_file(*tenants: str) -> str:
    """The text of a file with one key for each tenant."""
    return json.dumps({"keys": {t: {"hash": hashed(secret_of(t)), "tenant": t} for t in tenants}})


class Crowd:
    """``answered``: by tenant and status, 0 where the connection was closed. ``took_s``: how long each answer's head
    took, by status. ``bad``: refusals without the headers that they should have.
    """

    def __init__(self, port: int, *, padding: int = 0) -> None:
        self.answered: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.took_s: defaultdict[int, list[float]] = defaultdict(list)
        self.bad: list[bytes] = []
        self.over = asyncio.Event()
        self._port = port
        self._padding = padding

    async def client(self, tenant: str, *, pause_s: float = 0.0, enough: int = 0) -> None:
        """Ask until the crowd is over; it is over once the tenant had ``enough`` answers, where that is given."""
        body = json.dumps(
            {
                "model": "m",
                "messages": [{"role": "user", "content": "go on"}],
                "metadata": {"padding": "x" * self._padding},
                "max_tokens": 4,
            }
        ).encode()
        request = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {secret_of(tenant)}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.over.is_set():
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                status, head, took_s = await self._ask(*connection, request)
            except (OSError, asyncio.IncompleteReadError):  # a long body is refused before it is read
                self.answered[tenant][0] += 1
                status = 0
                head, took_s = b"", 0.0
            if self.over.is_set():
                break
            if status:
                self.answered[tenant][status] += 1
                self.took_s[status].append(took_s)
            if connection is not None and (not status or b"\r\nconnection: close" in head):
                connection[1].close()
                connection = None
            if status != 200:
                await _wait(self.over, pause_s)
            if enough and self.answered[tenant][200] >= enough:
                self.over.set()
        if connection is not None:
            connection[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[int, bytes, float]:
        asked = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        took_s = time.perf_counter() - asked
        status = int(head[9:12])
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if status == 429:
            wanted = [b"\r\nretry-after: ", b"\r\nretry-after-ms: "]
            if b'"queue_full"' in body:
                wanted.append(b"\r\nx-queue-depth: ")
            if any(field not in head for field in wanted):
                self.bad.append(head)
        return status, head, took_s


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
