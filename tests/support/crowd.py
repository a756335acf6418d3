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
    """``answered``: by tenant and status. ``took_s``: how long each answer's head took, by status. ``bad``: refusals
    without the headers that they should have.
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
                "messages": [{"role": "user", "content": "go on" + "x" * self._padding}],
                "max_tokens": 4,
            }
        ).encode()
        request = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {secret_of(tenant)}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while not self.over.is_set():
                asked = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                took_s = time.perf_counter() - asked
                status, lower = int(head[9:12]), head.lower()
                await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
                if self.over.is_set():
                    return
                self.answered[tenant][status] += 1
                self.took_s[status].append(took_s)
                if status == 429:
                    if any(
                        f not in lower
                        for f in (b"\r\nretry-after: ", b"retry-after-ms: ", b"x-queue-depth: ")
                    ):
                        self.bad.append(head)
                    await _wait(self.over, pause_s)
                if enough and self.answered[tenant][200] >= enough:
                    self.over.set()
        finally:
            writer.close()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
