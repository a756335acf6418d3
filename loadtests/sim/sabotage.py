"""How each fault is done to one exchange.

`on_request` strikes before the endpoint speaks, `on_reply` and `on_stream` bend what it says. Refuses to know which
request is struck (faults). Outcomes are marked `fault:<kind>`, except where the true status still goes out.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

from . import wire
from .api.errors import ApiError
from .dialect import error_frames, filler, is_terminal
from .exchange import SSE, Exchange
from .faults import SLEEP_PATHS, Fault, Faults
from .garbage import garbage

_HTML = b"<html><body>Bad Gateway</body></html>"
_PIECE = 1 << 20


class Sabotage:
    """One fault about to strike one exchange."""

    def __init__(self, fault: Fault, faults: Faults) -> None:
        self._fault = fault
        self._faults = faults
        self._kind = fault.kind
        self._p = fault.parameters

    async def on_request(self, exchange: Exchange) -> bool:
        """True when the fault was the whole answer."""
        kind, p = self._kind, self._p
        if kind == "slow" or (kind == "hang" and p["stage"] == "headers"):
            await self._wait(p["seconds"])
        elif kind in ("reset_before_headers", "stale"):
            self._break(exchange, rst=kind != "stale" or p["how"] == "rst")
            return True
        elif kind == "status":
            await self._status(exchange)
            return True
        elif kind == "garbage":
            data, close = garbage(p["variant"])
            exchange.write(data)
            exchange.keep_alive = exchange.keep_alive and not close
            self._mark(exchange)
            return True
        elif kind in SLEEP_PATHS:
            await self._asleep(exchange, p["how"])
            return True
        return False

    async def on_reply(
        self, exchange: Exchange, status: int, body: bytes, content_type: bytes
    ) -> bytes | None:
        """The body to send instead, or None when the answer is over."""
        kind, p = self._kind, self._p
        if kind == "reset_after_headers":
            exchange.begin(status, content_type, len(body))
            await exchange.connection.flushed()
            self._break(exchange, rst=True)
        elif kind in ("cut_mid_stream", "truncated"):
            kept = len(body) - p["missing"] if p.get("missing") else len(body) // 2
            exchange.write(exchange.head(status, content_type, len(body)) + body[: max(kept, 0)])
            rst = p.get("how") == "rst"
            if rst:
                await exchange.connection.flushed()
            self._break(exchange, rst=rst)
        elif kind == "hang" and p["stage"] == "stream":
            exchange.write(exchange.head(status, content_type, len(body)) + body[: len(body) // 2])
            await self._wait(p["seconds"])
            exchange.write(body[len(body) // 2 :])
            exchange.end()
        elif kind == "oversized":
            await self._flood(exchange, status, content_type)
        else:
            return body
        return None

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The events to send instead; may end the exchange itself."""
        kind, p = self._kind, self._p
        path = exchange.request.path
        if kind == "reset_after_headers":
            exchange.begin(200, SSE, None)
            await exchange.connection.flushed()
            self._break(exchange, rst=True)
            return
        after = p.get("after", 1)
        sent = 0
        async for event in events:
            if sent == after and kind in ("cut_mid_stream", "truncated"):
                await self._cut(exchange, event, p.get("how", "chunk"))
                return
            if sent == after and kind == "error_frame_then_done":
                exchange.mark = "fault:" + kind
                for frame in error_frames(path, p["status"], p["message"]):
                    yield frame
                return
            if sent == after and kind == "hang" and p["stage"] == "stream":
                await self._wait(p["seconds"])
            if sent == 1 and kind == "oversized":
                exchange.mark = "fault:" + kind
                block = filler(path, p["event_bytes"])
                for _ in range(-(-p["bytes"] // len(block))):
                    yield block
            if kind == "slow":
                await self._wait(p["per_event_s"])
            if kind == "no_terminal" and is_terminal(event):
                exchange.mark = "fault:" + kind
                continue
            yield event
            sent += 1

    async def _cut(self, exchange: Exchange, event: bytes, how: str) -> None:
        if not exchange.status:
            exchange.begin(200, SSE, None)
        if how == "clean":
            exchange.write(wire.LAST_CHUNK)
            self._mark(exchange)
            return
        if how == "chunk":
            whole = wire.chunk(event)
            exchange.write(whole[: len(whole) // 2])
        if how == "rst":
            await exchange.connection.flushed()
        self._break(exchange, rst=how == "rst")

    async def _status(self, exchange: Exchange) -> None:
        p = self._p
        status = self._faults.draw(p["statuses"]) if p["statuses"] else p["status"]
        error = ApiError(status, p["message"]).for_path(exchange.request.path)
        extra = ((b"retry-after", str(p["retry_after"]).encode()),) if p["retry_after"] is not None else ()
        if p["body"] is not None:
            body, kind = p["body"].encode(), (p["content_type"] or "text/plain").encode("latin-1", "replace")
            await exchange.reply(status, body, kind.translate(None, b"\r\n"), extra)
        elif p["content_type"] == "text/html":
            await exchange.reply(status, _HTML, b"text/html", extra)
        else:
            await exchange.json(status, error, extra)

    async def _asleep(self, exchange: Exchange, how: str) -> None:
        """vLLM answers 500 when its engine fails at it, 200 when it only logs that it did nothing, or ends."""
        if how == "hangs":
            await self._wait(self._p["seconds"])
        elif how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "lies":
            await exchange.json(200, {})
        else:
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            await exchange.json(500, ApiError(500, message).openai())
        self._mark(exchange)

    async def _flood(self, exchange: Exchange, status: int, content_type: bytes) -> None:
        start, end = b'{"padding":"', b'"}'
        left = max(self._p["bytes"] - len(start) - len(end), 0)
        chunked = self._p["chunked"]
        exchange.begin(status, content_type, None if chunked else left + len(start) + len(end))
        exchange.write(wire.chunk(start) if chunked else start)
        piece = b"x" * _PIECE
        while left and not exchange.connection.closed:
            part = piece if left >= _PIECE else piece[:left]
            exchange.write(wire.chunk(part) if chunked else part)
            left -= len(part)
            await exchange.connection.drain()
            await asyncio.sleep(0)
        if exchange.connection.closed:
            return
        exchange.write(wire.chunk(end) + wire.LAST_CHUNK if chunked else end)
        self._mark(exchange)

    async def _wait(self, seconds: float) -> None:
        """Until the time is over or the fault is switched off."""
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._fault.over.wait(), seconds)
        except TimeoutError:
            return

    def _mark(self, exchange: Exchange) -> None:
        exchange.mark = "fault:" + self._kind
        exchange.end()

    def _break(self, exchange: Exchange, *, rst: bool) -> None:
        exchange.keep_alive = False
        self._mark(exchange)
        if rst:
            exchange.connection.reset()
        else:
            exchange.connection.fin()
