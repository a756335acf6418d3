"""Canned mode: prebuilt answers without parsing, so that a bench measures something else.

A read that begins with a known request line and holds the whole request is answered from memory; anything else, and
everything while a fault is on, goes the ordinary way. Requests are counted by path, not recorded.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from . import wire
from .connection import Connection
from .exchange import JSON, SSE
from .faults import Faults
from .settings import Settings
from .stats import Stats

_CHAT = "/v1/chat/completions"
_MAX_HEAD = 65_536


class Canned:
    """Called by connections with raw bytes; True when it answered them."""

    def __init__(
        self, settings: Settings, faults: Faults, stats: Stats, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._faults = faults
        self._stats = stats
        self._settings = settings
        self._loop = loop
        self._prefix = f"POST {_CHAT} HTTP/1.1\r\n".encode()
        body = _completion(settings)
        self._reply = wire.head(200, content_type=JSON, length=len(body), close=False) + body
        events = [wire.chunk(event) for event in _events(settings)]
        events[0] = wire.head(200, content_type=SSE, length=None, close=False) + events[0]
        self._pieces = [*events[:-1], events[-1] + wire.LAST_CHUNK]
        self._paced: list[_Playing] = []
        self._next_s = 0.0

    def __call__(self, connection: Connection, data: bytes) -> bool:
        if not data.startswith(self._prefix) or self._faults.active:
            return False
        end = data.find(b"\r\n\r\n", 0, _MAX_HEAD)
        if end < 0 or len(data) != end + 4 + _content_length(data, end):
            return False
        self._stats.requests += 1
        if data.find(b'"stream":true', end) >= 0 or data.find(b'"stream": true', end) >= 0:
            connection.busy = True
            self.play(_Playing(self._pieces, connection, self._stats))
        else:
            connection.transport.write(self._reply)
            self._stats.count(_CHAT, "200")
        return True

    def play(self, playing: _Playing) -> None:
        """Lets one stream run: all paced streams share a ticker, unpaced ones take turns in the loop."""
        pace_s = self._settings.canned_pace_ms / 1000
        if not pace_s:
            self._loop.call_soon(self._turn, playing)
        else:
            self._paced.append(playing)
            if len(self._paced) == 1:
                self._next_s = self._loop.time() + pace_s
                self._loop.call_at(self._next_s, self._tick, pace_s)

    def _turn(self, playing: _Playing) -> None:
        if playing.step():
            self._loop.call_soon(self._turn, playing)

    def _tick(self, pace_s: float) -> None:
        self._paced = [playing for playing in self._paced if playing.step()]
        if self._paced:
            # A late tick does not make the next ones early.
            self._next_s = max(self._next_s + pace_s, self._loop.time())
            self._loop.call_at(self._next_s, self._tick, pace_s)


class _Playing:
    """One canned stream on its way."""

    def __init__(self, pieces: list[bytes], connection: Connection, stats: Stats) -> None:
        self._pieces = pieces
        self._connection = connection
        self._stats = stats
        self._at = 0

    def step(self) -> bool:
        """Writes the next event; False when the stream is over."""
        connection = self._connection
        if connection.closed:
            self._stats.count(_CHAT, "aborted")
            return False
        if connection.paused:
            return True
        connection.transport.write(self._pieces[self._at])
        self._at += 1
        if self._at < len(self._pieces):
            return True
        self._stats.count(_CHAT, "200")
        connection.done(True)
        return False


def _events(settings: Settings) -> list[bytes]:
    envelope = {
        "id": "chatcmpl-canned",
        "object": "chat.completion.chunk",
        "created": settings.created,
        "model": settings.models[0],
    }
    last = max(settings.canned_events, 3) - 2
    out = []
    for index in range(last + 1):
        delta = {"content": " word"} if index else {"role": "assistant", "content": ""}
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": "stop" if index == last else None,
        }
        out.append(b"data: " + msgspec.json.encode(envelope | {"choices": [choice]}) + b"\n\n")
    return [*out, b"data: [DONE]\n\n"]


def _completion(settings: Settings) -> bytes:
    def build(text: str) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        value = {
            "id": "chatcmpl-canned",
            "object": "chat.completion",
            "created": settings.created,
            "model": settings.models[0],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 11, "total_tokens": 75, "completion_tokens": 64},
        }
        return msgspec.json.encode(value)

    return build(
        ("word " * settings.canned_reply_bytes)[: max(settings.canned_reply_bytes - len(build("")), 1)]
    )


def _content_length(data: bytes, end: int) -> int:
    """The body's length by the head, -1 where the ordinary way should look at it."""
    at = data.find(b"ontent-", 0, end)
    while at >= 0:
        if data[at + 7 : at + 14].lower() == b"length:":
            stop = data.find(b"\r\n", at)
            value = data[at + 14 : stop].strip()
            return int(value) if value.isdigit() and len(value) < 10 else -1
        at = data.find(b"ontent-", at + 7, end)
    return -1
