"""Canned mode: prebuilt answers without parsing, so that a bench measures something else.

A read that begins with a known request line and holds the whole request is answered from memory; other requests to
the same endpoints get the same bytes after parsing; the rest, and everything while a fault is on, goes the ordinary
way. Requests are counted by path, not recorded.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

from . import wire
from .connection import Connection
from .exchange import JSON, SSE
from .recorder import record
from .settings import Settings
from .simulator import Simulator
from .stats import Stats
from .wire import Request

_CHAT = b"/v1/chat/completions"
_SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "canned"}], "max_tokens": 32}
_ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "canned"},
    "/v1/messages": _SAID,
    "/v1/responses": {"input": "canned", "store": False},
    "/v1/embeddings": {"input": "canned"},
    "/v1/rerank": {"query": "canned", "documents": ["a", "b"]},
    "/v1/score": {"text_1": "canned", "text_2": "b"},
    "/classify": {"input": "canned"},
    "/pooling": {"input": "canned"},
    "/tokenize": {"prompt": "canned"},
}
_STREAMED = frozenset({"/v1/completions", "/v1/messages", "/v1/responses"})
_MAX_HEAD = 65_536


class Answer(NamedTuple):
    """Raw bytes: a whole plain response, and a stream's pieces to be flushed one by one (none: it has no stream)."""

    plain: bytes
    pieces: list[bytes]


class Canned:
    """`fast` is given raw reads and `serve` parsed requests; both fall back to the simulator's ordinary way."""

    def __init__(self, settings: Settings, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._faults = simulator.faults
        self._stats = simulator.stats
        self._pace_s = settings.canned_pace_ms / 1000
        self._loop = loop
        self._paced: list[_Playing] = []
        self._next_s = 0.0
        self._answers: dict[bytes, Answer] = {}

    async def prepare(self) -> None:
        """Builds the answers: chat to the size that was asked for, the others by asking their endpoints once."""
        settings = self._simulator.settings
        self._answers[_CHAT] = Answer(_response(_completion(settings)), _pieces(_events(settings)))
        for path, body in _ASKED.items():
            plain, _ = await record(self._simulator.context, path, body)
            events: list[bytes] = []
            if path in _STREAMED:
                _, events = await record(self._simulator.context, path, body | {"stream": True})
            self._answers[path.encode()] = Answer(_response(plain), _pieces(events) if events else [])

    def fast(self, connection: Connection, data: bytes) -> bool:
        """True when these bytes were one whole request for something canned, which is answered."""
        if not data.startswith(b"POST ") or self._faults.active:
            return False
        path_end = data.find(b" ", 5, 64)
        answer = self._answers.get(data[5:path_end])
        end = data.find(b"\r\n\r\n", path_end, _MAX_HEAD)
        if answer is None or end < 0 or len(data) != end + 4 + _content_length(data, end):
            return False
        if data.find(b"onnection: close", path_end, end) >= 0:
            return False
        self._answer(connection, data[5:path_end].decode(), answer, self._streams(answer, data, end), True)
        return True

    def serve(self, connection: Connection, request: Request) -> asyncio.Task[None] | None:
        """The same for a request that came in several reads."""
        answer = self._answers.get(request.path.encode("latin-1"))
        if answer is None or self._faults.active or request.method != "POST":
            return self._simulator.serve(connection, request)
        stream = self._streams(answer, request.body, 0)
        self._answer(connection, request.path, answer, stream, request.keep_alive)
        if not stream:
            connection.done(request.keep_alive)
        return None

    def _answer(
        self, connection: Connection, path: str, answer: Answer, stream: bool, keep_alive: bool
    ) -> None:
        self._stats.requests += 1
        if stream:
            connection.busy = True
            self.play(_Playing(answer.pieces, connection, self._stats, path, keep_alive))
        else:
            connection.transport.write(answer.plain)
            self._stats.count(path, "200")

    def _streams(self, answer: Answer, data: bytes, start: int) -> bool:
        return bool(answer.pieces) and (
            data.find(b'"stream":true', start) >= 0 or data.find(b'"stream": true', start) >= 0
        )

    def play(self, playing: _Playing) -> None:
        """Lets one stream run: all paced streams share a ticker, unpaced ones take turns in the loop."""
        pace_s = self._pace_s
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

    def __init__(
        self, pieces: list[bytes], connection: Connection, stats: Stats, path: str, keep_alive: bool
    ) -> None:
        self._path = path
        self._keep_alive = keep_alive
        self._pieces = pieces
        self._connection = connection
        self._stats = stats
        self._at = 0

    def step(self) -> bool:
        """Writes the next event; False when the stream is over."""
        connection = self._connection
        if connection.closed:
            self._stats.count(self._path, "aborted")
            return False
        if connection.paused:
            return True
        connection.transport.write(self._pieces[self._at])
        self._at += 1
        if self._at < len(self._pieces):
            return True
        self._stats.count(self._path, "200")
        connection.done(self._keep_alive)
        return False


def _response(body: bytes) -> bytes:
    return wire.head(200, content_type=JSON, length=len(body), close=False) + body


def _pieces(events: list[bytes]) -> list[bytes]:
    chunks = [wire.chunk(event) for event in events]
    chunks[0] = wire.head(200, content_type=SSE, length=None, close=False) + chunks[0]
    chunks[-1] += wire.LAST_CHUNK
    return chunks


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
