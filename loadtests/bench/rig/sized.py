"""Backends whose replies have the sizes that cached answers are measured with; one process, a port each.

They fill the cache before anything is timed, so that how fast they are does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import functools

from . import payload


class _Reply(asyncio.Protocol):
    """Answers every request on a connection with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            self._data = rest[length:]
            self._transport.write(self._reply)


def reply(body: bytes) -> bytes:
    """A whole response."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(ports: dict[str, int]) -> None:
    """Serve each model of :data:`payload.SIZED` on its port until ended."""
    loop = asyncio.get_running_loop()
    for model, port in ports.items():
        made = functools.partial(_Reply, reply(payload.sized_completion(model)))
        await loop.create_server(made, "127.0.0.1", port, backlog=4096)
    await loop.create_future()


def main() -> None:
    """``--port MODEL=PORT`` as often as there are models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", action="append", default=[])
    pairs = (text.split("=") for text in parser.parse_args().port)
    asyncio.run(serve({model: int(port) for model, port in pairs}))


if __name__ == "__main__":
    main()
