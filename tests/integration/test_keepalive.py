"""Streams that wait for servers to start: silent at first, then open and kept alive, then whatever their answer is.

The test plays the controller, and moves the time of the comments; all else is real.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anthropic
import openai
import pytest

from penstock.cache.pool_table import PoolPhase
from penstock.gateway.exchange import Exchange
from penstock.gateway.keepalive import COMMENT
from penstock.gateway.relay import ASK_EVERY_BYTES, PAUSE_ABOVE_BYTES, Relay

from ..conformance.bodies import GENERATING, chat, message, response
from ..support.dataplane import DataPlane, data_plane
from ..support.played import SECRET, Played, webhook_pool
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.staged import Staged
from ..support.wire import Reply, Wire, request

SILENT_S, EVERY_S = 25.0, 10.0
"""The usual ones: nobody waits for them here."""


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model="m") as one:
        yield one


class Stage:
    """A data plane with one model, whose servers sleep, and the test as its controller."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.pool = Played(plane)
        self._index = plane.published.model_indices["m"]

    def wait_held(self, streams: int = 1, waiting: int | None = None) -> None:
        """Until so many streams are looked after, and so many requests are counted as waiting."""
        wait_until(lambda: len(self.plane.worker.keepalive) == streams, 20, "the streams that wait")
        if waiting is not None:
            self.wait_waiting(waiting)

    def wait_waiting(self, count: int) -> None:
        wait_until(lambda: self.plane.tally.waiting(self._index) == count, 20, f"{count} waiting")

    def comment(self, at: float) -> None:
        """Whoever is due by then gets a comment."""
        self.plane.call(lambda: self.plane.worker.keepalive.tick(at, 30.0))

    def open(self, *wires: Wire, comments: int = 1) -> None:
        """Every stream that waits has done so for so long that so many comments are due; these clients get them."""
        at = time.monotonic() + SILENT_S
        for n in range(comments):
            self.comment(at + n * EVERY_S)
            self.wait_taken(n + 1, *wires)

    def wait_taken(self, comments: int, *wires: Wire) -> None:
        """Until so many have come, and the gateway can know it: a client that has not taken the last is left out."""
        for wire in wires:
            wait_until(lambda wire=wire: _waits_in(wire).count(COMMENT) == comments, 20, "the comments")  # type: ignore[misc]
        wait_until(lambda: not any(map(_unread, _lives(self.plane))), 20, "the client has acknowledged them")

    def give_up(self) -> None:
        """All that wait have waited for ready_timeout_s."""
        self.plane.call(lambda: self.plane.worker.holding.tick(time.monotonic() + 301.0))


@pytest.fixture
def stage(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(sim.url, monkeypatch) as one:
        yield one


@contextmanager
def staged(url: str, monkeypatch: pytest.MonkeyPatch, **terms: Any) -> Iterator[Stage]:
    """A data plane in front of that server."""
    monkeypatch.setenv(SECRET, "x")
    model = {"backends": [{"url": url}], "pool": webhook_pool(**terms)}
    with data_plane({"models": {"m": model}, "cache": {"mode": "all", "l1": {"size": "32MiB"}}}) as plane:
        yield Stage(plane)


def ask(
    stage: Stage, path: str, *, kept: bool = True, receive_buffer: int | None = None, **more: Any
) -> Wire:
    """A stream is asked for; nothing is read of it yet. Not kept: the cache has nothing to do with it."""
    body = GENERATING[path]("m", **{"stream": True, **more})
    headers = {} if kept else {"cache-control": "no-cache, no-store"}
    wire = Wire(stage.plane.port, receive_buffer=receive_buffer)
    return wire.send(request(path, json.dumps(body).encode(), headers=headers))


def rest(wire: Wire) -> Reply:
    with wire:
        reply = wire.reply()
    assert reply is not None
    assert reply.complete
    return reply


def asked(sim: Simulator) -> int:
    """How many chats the server was asked for."""
    return int(sim.stats()["paths"].get("/v1/chat/completions", {"total": 0})["total"])


def _waits_in(wire: Wire) -> bytes:
    """What has come and was not read."""
    return wire.socket.recv(1 << 20, socket.MSG_PEEK)


def nothing_yet(wire: Wire) -> bool:
    wire.socket.setblocking(False)
    try:
        wire.socket.recv(1)
    except BlockingIOError:
        return True
    finally:
        wire.socket.settimeout(30)
    return False


def last_event(body: bytes) -> tuple[str, Any]:
    """Name and data of the last event."""
    assert body.endswith(b"\n\n")
    name, data = "", None
    for line in body[:-2].split(b"\n\n")[-1].decode().splitlines():
        key, _, value = line.partition(": ")
        name = value if key == "event" else name
        data = json.loads(value) if key == "data" else data
    return name, data


# ---- an answer comes


@pytest.mark.parametrize("path", GENERATING)
def test_it_is_silent_then_kept_alive_and_the_answer_is_kept_without_comments(
    stage: Stage, path: str
) -> None:
    began = time.monotonic()
    wire = ask(stage, path)
    stage.wait_held(waiting=1)
    stage.comment(began + SILENT_S - 0.01)
    assert nothing_yet(wire)
    stage.open(wire, comments=3)
    stage.pool.phase(PoolPhase.READY)
    opened = rest(wire)
    assert opened.status == 200
    assert (opened.header("content-type") or "").startswith("text/event-stream")
    assert opened.header("x-request-id")
    assert opened.header("x-penstock-cache") == "MISS"
    again = rest(ask(stage, path))
    assert again.header("x-penstock-cache") == "HIT-L1"
    assert b"keepalive" not in again.body
    assert opened.body == 3 * COMMENT + again.body
    stage.plane.wait_settled()
    assert stage.plane.statuses() == {"200": 2}


def test_before_the_silent_time_the_head_is_the_answers_own(stage: Stage) -> None:
    wire = ask(stage, "/v1/chat/completions")
    stage.wait_held()
    stage.pool.phase(PoolPhase.READY)
    reply = rest(wire)
    assert reply.header("x-penstock-backend")
    assert int(reply.header("x-penstock-wake-ms") or -1) >= 0
    stage.comment(time.monotonic() + 1000)
    assert b"keepalive" not in reply.body


def test_who_follows_is_kept_alive_too_and_gets_the_same_bytes(stage: Stage, sim: Simulator) -> None:
    sim.reset()
    wires = [ask(stage, "/v1/chat/completions") for _ in range(3)]
    stage.wait_held(streams=3, waiting=1)
    stage.open(*wires, comments=2)
    late = ask(stage, "/v1/chat/completions")
    stage.wait_held(streams=4)
    stage.pool.phase(PoolPhase.READY)
    bodies = [rest(wire).body for wire in wires]
    assert len(set(bodies)) == 1
    assert bodies[0].startswith(2 * COMMENT)
    assert rest(late).body == bodies[0][2 * len(COMMENT) :]
    assert asked(sim) == 1


def test_what_is_no_stream_is_never_opened(stage: Stage) -> None:
    wire = ask(stage, "/v1/chat/completions", stream=False)
    stage.wait_waiting(1)
    assert len(stage.plane.worker.keepalive) == 0
    stage.open()
    assert nothing_yet(wire)
    stage.pool.phase(PoolPhase.READY)
    assert rest(wire).json()["choices"]


def test_without_keepalive_s_nothing_is_opened(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged(sim.url, monkeypatch, keepalive_s=0) as stage:
        wire = ask(stage, "/v1/chat/completions")
        stage.wait_waiting(1)
        assert len(stage.plane.worker.keepalive) == 0
        stage.pool.fail("no such image")
        reply = rest(wire)
        assert (reply.status, reply.code) == (503, "wake_failed")


def test_an_answer_that_is_merely_slow_is_waited_for_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """By who asked, and by who follows; nor are there comments in the middle of an answer."""
    pieces = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    with Staged(pieces, go=0, close=True) as backend, staged(backend.url, monkeypatch) as stage:
        wires = [ask(stage, "/v1/chat/completions") for _ in range(2)]
        stage.wait_held(streams=2, waiting=1)
        stage.pool.phase(PoolPhase.READY)
        stage.wait_waiting(0)
        wait_until(lambda: backend.received == 1, what="the request")
        stage.open()
        assert all(map(nothing_yet, wires))
        backend.go()
        assert [rest(wire).body for wire in wires] == [b"".join(pieces[1:])] * 2


def test_an_open_one_gets_comments_up_to_its_answers_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"fini',
        b'sh_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    with Staged(pieces, go=0, close=True) as backend, staged(backend.url, monkeypatch) as stage:
        wire = ask(stage, "/v1/chat/completions")
        stage.wait_held()
        stage.open()
        stage.pool.phase(PoolPhase.READY)
        wait_until(lambda: backend.received == 1, 20, "the request")
        stage.wait_taken(1, wire)
        at = time.monotonic() + SILENT_S + EVERY_S
        backend.go(1)
        stage.comment(at)
        stage.wait_taken(2, wire)
        stage.comment(at + EVERY_S)
        backend.go(1)
        wait_until(lambda: _relayed(stage.plane) == [len(pieces[1])], 20, "the first of the answer")
        stage.comment(at + 2 * EVERY_S)
        backend.go()
        assert rest(wire).body == 3 * COMMENT + b"".join(pieces[1:])


# ---- it fails


ENDS: dict[str, tuple[Callable[[Stage], None], int, str]] = {
    "the wake fails": (lambda stage: stage.pool.fail("exit status 1"), 503, "wake_failed"),
    "it takes too long": (lambda stage: stage.give_up(), 504, "wake_timeout"),
    "the node drains": (lambda stage: stage.plane.call(stage.plane.worker.cut), 503, "draining"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("path", GENERATING)
def test_before_it_is_open_a_failure_has_its_status_and_after_that_its_frame(
    stage: Stage, path: str, end: str
) -> None:
    fail, status, code = ENDS[end]
    opened = ask(stage, path, user="a", seed=1)
    stage.wait_held(streams=1, waiting=1)
    stage.open()
    silent = ask(stage, path, user="b", seed=2)
    stage.wait_held(streams=2, waiting=2)
    fail(stage)
    refused = rest(silent)
    assert refused.status == status
    error: dict[str, Any] = refused.json()["error"]
    assert error["message"]
    if path != "/v1/messages":
        assert error["code"] == code
    broken = rest(opened)
    assert broken.status == 200
    assert broken.body.startswith(COMMENT)
    assert broken.body.count(b"data: ") == 1
    name, data = last_event(broken.body)
    framed = data["error"]
    assert (framed["status"], framed["code"], framed["message"]) == (status, code, error["message"])
    assert framed["type"] == error["type"]
    assert name == ("error" if path in ("/v1/messages", "/v1/responses") else "")
    if name:
        assert data["type"] == "error"
    if path == "/v1/responses":
        assert (data["code"], data["message"]) == (code, error["message"])
        assert isinstance(data["sequence_number"], int)
    stage.plane.wait_settled()
    assert stage.plane.statuses() == {str(status): 2}


def test_a_failed_wake_is_told_with_its_reason_and_nothing_is_kept(stage: Stage) -> None:
    wire = ask(stage, "/v1/chat/completions")
    stage.wait_held()
    stage.open()
    stage.pool.fail("the process ended with status 3")
    assert b"the process ended with status 3" in rest(wire).body
    stage.pool.phase(PoolPhase.READY)
    reply = rest(ask(stage, "/v1/chat/completions"))
    assert reply.header("x-penstock-cache") == "MISS"
    assert reply.body.endswith(b"data: [DONE]\n\n")


def answer(status: str, body: bytes, media: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


TOLD = b'{"error":{"message":"too many tokens","type":"BadRequestError","param":"messages","code":400}}'
LONG = b'{"error":{"message":"' + b"x" * (3 << 20) + b'"}}'


@pytest.mark.parametrize(
    ("whole", "status", "code", "said"),
    [
        (answer("400 Bad Request", TOLD), 400, 400, "too many tokens"),
        (answer("429 Too Many Requests", TOLD), 429, 400, "too many tokens"),
        (answer("501 Not Implemented", b"<html>", "text/html"), 501, 501, "the backend answered 501"),
        (answer("400 Bad Request", LONG), 400, 400, "the backend answered 400"),
        (answer("200 OK", b'{"choices":[]}'), 502, "upstream_no_stream", "none"),
        (
            answer("200 OK", b'{"choices":[{"message":"' + b"x" * (3 << 20) + b'"}]}'),
            502,
            "upstream_no_stream",
            "none",
        ),
    ],
    ids=["error", "busy", "html", "long error", "no stream", "long and no stream"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_an_answer_that_is_no_stream_becomes_an_error_frame(
    monkeypatch: pytest.MonkeyPatch, path: str, whole: bytes, status: int, code: object, said: str
) -> None:
    """For who asks, who follows, and who wants nothing kept; all are told the same."""
    with Staged([whole]) as backend, staged(backend.url, monkeypatch) as stage:
        wires = [ask(stage, path), ask(stage, path), ask(stage, path, kept=False)]
        stage.wait_held(streams=3, waiting=2)
        stage.open()
        stage.pool.phase(PoolPhase.READY)
        bodies = [rest(wire).body for wire in wires]
        assert len(set(bodies)) == 1
        assert bodies[0].startswith(COMMENT)
        name, data = last_event(bodies[0])
        error = data["error"]
        assert (error["status"], error["code"]) == (status, code)
        assert said in error["message"]
        assert name == ("error" if path in ("/v1/messages", "/v1/responses") else "")
        stage.plane.wait_settled()
        assert stage.plane.statuses() == {str(status): 3}


def test_a_huge_answer_that_is_no_stream_is_not_relayed_into_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is over what may be sent where its pace cannot be seen takes another way."""
    huge = answer("400 Bad Request", b"x" * (5 << 20), "text/plain")
    with Staged([huge]) as backend, staged(backend.url, monkeypatch) as stage:
        wires = [ask(stage, "/v1/chat/completions", kept=kept) for kept in (True, False)]
        stage.wait_held(streams=2, waiting=2)
        stage.open()
        stage.pool.phase(PoolPhase.READY)
        for wire in wires:
            body = rest(wire).body
            assert len(body) < 1000
            assert last_event(body)[1]["error"]["status"] == 400


def test_an_answer_that_breaks_off_is_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        b'data: {"choices":[{"index":0,"del',
    ]
    with Staged(pieces, close=True) as backend, staged(backend.url, monkeypatch) as stage:
        wire = ask(stage, "/v1/chat/completions")
        stage.wait_held()
        stage.open()
        stage.pool.phase(PoolPhase.READY)
        body = rest(wire).body
        assert body.startswith(COMMENT + pieces[1] + b"\n\n")
        assert last_event(body)[1]["error"]["code"] == "upstream_incomplete"


# ---- clients that do not read


def test_a_client_that_does_not_read_an_open_stream_pauses_its_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the same bound as ever, comments or none; what it reads in the end is whole."""
    events = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % n for n in range(200_000)
    )
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    with (
        Staged([head + events + end], close=True) as backend,
        staged(backend.url, monkeypatch) as stage,
    ):
        wire = ask(stage, "/v1/chat/completions", kept=False, receive_buffer=64 << 10)
        stage.wait_held()
        stage.open(wire, comments=20)
        stage.pool.phase(PoolPhase.READY)
        relay = wait_until(lambda: _paused(stage.plane), 20, "the upstream is paused")
        kernel_bytes, read_bytes = 1 << 20, 256 << 10
        assert relay.sent <= PAUSE_ABOVE_BYTES + ASK_EVERY_BYTES + 2 * read_bytes + kernel_bytes
        body = rest(wire).body
        assert body.startswith(COMMENT)
        assert body.endswith(events + end)
        assert set(body[: -len(events + end)].split(COMMENT)) == {b""}


# ---- clients leave


def test_a_client_that_leaves_while_it_is_kept_alive_wants_nothing_any_more(
    stage: Stage, sim: Simulator
) -> None:
    sim.reset()
    wire = ask(stage, "/v1/chat/completions")
    stage.wait_held(waiting=1)
    stage.open()
    wire.reset()
    stage.wait_waiting(0)
    stage.plane.wait_settled()
    assert stage.plane.statuses() == {"499": 1}
    stage.pool.phase(PoolPhase.READY)
    assert asked(sim) == 0


def test_who_follows_one_that_has_left_is_kept_alive_and_answered(stage: Stage) -> None:
    first = ask(stage, "/v1/chat/completions")
    stage.wait_held(waiting=1)
    second = ask(stage, "/v1/chat/completions")
    stage.wait_held(streams=2)
    stage.open(first, second)
    first.reset()
    wait_until(lambda: _left(stage.plane) == 1, 20, "the first has left")
    stage.comment(time.monotonic() + SILENT_S + EVERY_S)
    assert stage.plane.tally.waiting(0) == 1
    stage.pool.phase(PoolPhase.READY)
    body = rest(second).body
    assert body.startswith(2 * COMMENT)
    assert body.endswith(b"data: [DONE]\n\n")


def _lives(plane: DataPlane) -> list[Exchange]:
    watch: Any = plane.worker.watch
    return plane.call(lambda: [*watch._young, *watch._old])


def _unread(life: Exchange) -> bool:
    acked = life.acked()
    return acked is not None and acked[1] > 0


def _left(plane: DataPlane) -> int:
    return sum(life.left for life in _lives(plane))


def _paused(plane: DataPlane) -> Relay | None:
    return next((life.relay for life in _lives(plane) if life.relay is not None and life.relay.paused), None)


def _relayed(plane: DataPlane) -> list[int]:
    """How many bytes of each answer that has begun have been passed on."""
    return [life.relay.sent for life in _lives(plane) if life.relay is not None]


# ---- SDKs


def waking(stage: Stage, ask: Callable[[], Any], then: Callable[[], None]) -> Any:
    """What `ask` comes to whose request waits, is kept alive with three comments, and ends as `then` says."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(ask)
        try:
            wait_until(lambda: result.done() or len(stage.plane.worker.keepalive), 20, "a stream that waits")
            stage.open(comments=3)
        finally:
            then()
        return result.result(30)


def ready(stage: Stage) -> Callable[[], None]:
    return lambda: stage.pool.phase(PoolPhase.READY)


def an_openai(stage: Stage) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{stage.plane.port}/v1", api_key="x", max_retries=0)


def an_anthropic(stage: Stage) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{stage.plane.port}", api_key="x", max_retries=0)


def _chat(stage: Stage) -> str:
    with an_openai(stage) as client:
        return "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**chat("m"), stream=True)
        )


def _response(stage: Stage) -> str:
    with an_openai(stage) as client:
        events = client.responses.create(**response("m"), stream=True)
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def _message(stage: Stage) -> str:
    with an_anthropic(stage) as client, client.messages.stream(**message("m")) as stream:
        return "".join(stream.text_stream)


def _async_chat(stage: Stage) -> str:
    async def go() -> str:
        text = ""
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{stage.plane.port}/v1", api_key="x", max_retries=0
        ) as client:
            async for chunk in await client.chat.completions.create(**chat("m"), stream=True):
                text += chunk.choices[0].delta.content or ""
        return text

    return asyncio.run(go())


def _async_message(stage: Stage) -> str:
    async def go() -> str:
        text = ""
        async with (
            anthropic.AsyncAnthropic(
                base_url=f"http://127.0.0.1:{stage.plane.port}", api_key="x", max_retries=0
            ) as client,
            client.messages.stream(**message("m")) as stream,
        ):
            async for piece in stream.text_stream:
                text += piece
        return text

    return asyncio.run(go())


SDKS: dict[str, Callable[[Stage], str]] = {
    "openai chat": _chat,
    "openai responses": _response,
    "anthropic": _message,
    "openai async": _async_chat,
    "anthropic async": _async_message,
}


@pytest.mark.parametrize("sdk", SDKS)
def test_the_sdks_wait_and_read_the_answer(stage: Stage, sdk: str) -> None:
    waited = waking(stage, lambda: SDKS[sdk](stage), ready(stage))
    assert waited
    assert SDKS[sdk](stage) == waited


@pytest.mark.parametrize("sdk", SDKS)
def test_the_sdks_raise_what_the_frame_says(stage: Stage, sdk: str) -> None:
    raises = anthropic.APIStatusError if "anthropic" in sdk else openai.APIError
    with pytest.raises(raises, match="exit status 1"):
        waking(stage, lambda: SDKS[sdk](stage), lambda: stage.pool.fail("exit status 1"))
