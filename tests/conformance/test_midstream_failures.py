"""A stream that breaks off is never taken for a success: each SDK raises, in its own dialect, on every way to break.

The true status goes into the error frame and into the metric, for the status line has long said 200.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.nghttpx import needs_nghttpx, nghttpx
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from .bodies import GENERATING, chat, completion, message, response
from .rogue import Rogue, Then, chunk, rogue, stream_head
from .target import Target

FAULTS: dict[str, tuple[dict[str, Any], int]] = {
    "cut cleanly": ({"kind": "cut_mid_stream", "how": "clean"}, 502),
    "cut by FIN": ({"kind": "cut_mid_stream", "how": "fin"}, 502),
    "cut by RST": ({"kind": "cut_mid_stream", "how": "rst"}, 502),
    "cut inside a chunk": ({"kind": "cut_mid_stream", "how": "chunk"}, 502),
    "cut inside the first event": ({"kind": "cut_mid_stream", "how": "chunk", "after": 1}, 502),
    "no terminal event": ({"kind": "no_terminal"}, 502),
    "error frame, then done": ({"kind": "error_frame_then_done", "status": 500}, 500),
    "hang": ({"kind": "hang", "stage": "stream"}, 504),
}
"""Faults of the simulator, each with the status that must be counted. `after`: the events that go out first."""

INSIDE = frozenset(fault for fault in FAULTS if "inside" in fault)
"""Half of an event has reached the client and cannot be taken back: an SDK may trip over its JSON before our frame."""


def _openai_chat(target: Target) -> int:
    return sum(1 for _ in target.openai().chat.completions.create(**chat(target.model), stream=True))


def _openai_chat_helper(target: Target) -> int:
    with target.openai().chat.completions.stream(**chat(target.model)) as stream:
        return sum(1 for _ in stream)


def _openai_completions(target: Target) -> int:
    return sum(1 for _ in target.openai().completions.create(**completion(target.model), stream=True))


def _openai_responses(target: Target) -> int:
    return sum(1 for _ in target.openai().responses.create(**response(target.model), stream=True))


def _anthropic_messages(target: Target) -> int:
    return sum(1 for _ in target.anthropic().messages.create(**message(target.model), stream=True))


def _anthropic_helper(target: Target) -> int:
    with target.anthropic().messages.stream(**message(target.model)) as stream:
        return sum(1 for _ in stream)


READERS: dict[str, tuple[str, Callable[[Target], int], type[Exception]]] = {
    "openai chat": ("/v1/chat/completions", _openai_chat, openai.APIError),
    "openai chat, the helper": ("/v1/chat/completions", _openai_chat_helper, openai.APIError),
    "openai completions": ("/v1/completions", _openai_completions, openai.APIError),
    "openai responses": ("/v1/responses", _openai_responses, openai.APIError),
    "anthropic messages": ("/v1/messages", _anthropic_messages, anthropic.APIStatusError),
    "anthropic messages, the helper": ("/v1/messages", _anthropic_helper, anthropic.APIStatusError),
}


@pytest.fixture
def break_with(faulty: Simulator) -> Iterator[Callable[[str], int]]:
    """Switches a fault on for the generating endpoints; the status that is to be counted for it."""

    def switch(name: str) -> int:
        fault, status = FAULTS[name]
        faulty.faults({"path": "/v1/*", **fault})
        return status

    yield switch
    faulty.reset()


def _counted(target: Target, path: str) -> dict[str, float]:
    assert target.gateway is not None
    statuses = ("200", "500", "502", "504")
    return {s: target.gateway.metric("penstock_requests_total", endpoint=path, status=s) for s in statuses}


def _grew(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {status: n - before[status] for status, n in after.items() if n != before[status]}


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_stream_raises_nothing_and_counts_as_200(faulty_target: Target, reader: str) -> None:
    path, read, _ = READERS[reader]
    before = _counted(faulty_target, path)
    assert read(faulty_target) > 3
    wait_until(lambda: _grew(_counted(faulty_target, path), before) == {"200": 1}, 15, "one more 200")


def _break_off(target: Target, break_with: Callable[[str], int], fault: str, reader: str) -> None:
    path, read, error = READERS[reader]
    before = _counted(target, path)
    status = break_with(fault)
    with pytest.raises((error, ValueError) if fault in INSIDE else error):
        read(target)
    wait_until(
        lambda: _grew(_counted(target, path), before),
        15,
        "a count",
    )
    assert _grew(_counted(target, path), before) == {str(status): 1}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_sdk_raises_and_the_true_status_is_counted(
    faulty_target: Target, break_with: Callable[[str], int], fault: str, reader: str
) -> None:
    _break_off(faulty_target, break_with, fault, reader)


@pytest.mark.protocols("http2")
@pytest.mark.parametrize(("fault", "reader"), list(zip(FAULTS, itertools.cycle(READERS), strict=False)))
def test_the_sdk_raises_over_http2_as_well(
    faulty_target: Target, break_with: Callable[[str], int], fault: str, reader: str
) -> None:
    _break_off(faulty_target, break_with, fault, reader)


async def _drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        continue


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_async_sdks_raise_as_well(
    faulty_target: Target, break_with: Callable[[str], int], fault: str
) -> None:
    break_with(fault)
    trips = (ValueError,) if fault in INSIDE else ()
    async with faulty_target.async_openai() as client:
        talk = await client.chat.completions.create(**chat(faulty_target.model), stream=True)
        with pytest.raises((openai.APIError, *trips)):
            await _drain(talk)
        answer = await client.responses.create(**response(faulty_target.model), stream=True)
        with pytest.raises((openai.APIError, *trips)):
            await _drain(answer)
    async with faulty_target.async_anthropic() as other:
        words = await other.messages.create(**message(faulty_target.model), stream=True)
        with pytest.raises((anthropic.APIStatusError, *trips)):
            await _drain(words)


def _events(body: bytes) -> list[tuple[str, Any]]:
    """(event name, data) of each event with data, JSON decoded where it is whole JSON."""
    events: list[tuple[str, Any]] = []
    for block in body.decode().replace("\r\n", "\n").split("\n\n"):
        name, data = "", None  # type: str, Any
        for line in block.split("\n"):
            key, _, value = line.partition(":")
            name = value.strip() if key == "event" else name
            data = value.strip() if key == "data" else data
        if data is not None:
            with contextlib.suppress(ValueError):
                data = json.loads(data)
            events.append((name, data))
    return events


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "error frame, then done"])
def test_the_error_frame_is_the_dialects_own_and_the_last(
    faulty_target: Target, break_with: Callable[[str], int], fault: str, path: str
) -> None:
    status = break_with(fault)
    answer = faulty_target.post(path, GENERATING[path](faulty_target.model, stream=True))
    assert answer.status == 200
    assert answer.body.endswith(b"\n\n")
    events = _events(answer.body)
    name, data = events[-1]
    error = data["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"]
    assert error["status"] == status
    if path == "/v1/messages":
        assert name == "error"
        assert data["type"] == "error"
    elif path == "/v1/responses":
        assert name == "error"
        assert data["type"] == "error"
        assert isinstance(data["sequence_number"], int)
        assert data["message"] == error["message"]
        assert {"code", "param"} <= set(data)
    else:
        assert set(data) == {"error"}
    before = [event for event, _ in events[:-1]]
    assert not {"message_stop", "response.completed", "error"} & set(before)
    assert "[DONE]" not in [data for _, data in events]


@pytest.mark.protocols("http1", "http2")
@pytest.mark.parametrize("path", GENERATING)
def test_an_upstreams_own_error_frame_is_passed_on_untouched(
    faulty_target: Target, break_with: Callable[[str], int], path: str
) -> None:
    break_with("error frame, then done")
    assert faulty_target.gateway is not None
    body = GENERATING[path](faulty_target.model, stream=True)
    through = faulty_target.post(path, body)
    direct = httpx.post(faulty_target.tap.url + path, json=body, trust_env=False)
    assert b"EngineCore died" in through.body
    assert len(_events(through.body)) == len(_events(direct.content))
    assert _events(through.body)[-1] == _events(direct.content)[-1]


@needs_nghttpx
@pytest.mark.usefixtures("simulated")
def test_a_stream_that_http2_resets_ends_in_an_error_frame() -> None:
    """Four on one connection, all begun: nghttpx resets each when the server behind it has gone."""
    with (
        simulator() as sim,
        nghttpx(sim.url) as url,
        gateway(
            {
                "models": {"m": {"backends": [{"url": url, "protocol": "http2"}]}},
                "upstream": {"http2": {"min_connections": 1, "max_connections": 1}},
                "workers": {"count": 1},
            }
        ) as running,
        httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client,
        contextlib.ExitStack() as stack,
    ):
        sim.faults({"path": "/v1/*", "kind": "hang", "stage": "stream"})
        answers = {}
        for path, make in GENERATING.items():
            asked = client.stream("POST", path, json=make("m", stream=True))
            answers[path] = stack.enter_context(asked).iter_bytes()
            assert next(answers[path]).startswith((b"data: ", b"event: "))
        sim.proc.send(signal.SIGKILL)
        for path, rest in answers.items():
            name, data = _events(b"".join(rest))[-1]
            assert data["error"]["status"] == 502
            assert name == ("error" if path in ("/v1/messages", "/v1/responses") else "")


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("kind", ["reset_before_headers", "reset_after_headers"])
def test_a_stream_that_breaks_before_its_first_byte_has_its_true_status(
    faulty_target: Target, faulty: Simulator, path: str, kind: str
) -> None:
    faulty.faults({"kind": kind, "path": "/v1/*"})
    try:
        answer = faulty_target.post(path, GENERATING[path](faulty_target.model, stream=True))
    finally:
        faulty.reset()
    assert answer.status == 502
    assert answer.json()["error"]["message"]


# ---- streams that only look whole

FIRST = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}\n\n'
NAMED = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[]}}\n\n'

LOOKALIKES: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "[DONE] said in a text": (
        "/v1/chat/completions",
        (FIRST, b'data: {"choices":[{"index":0,"delta":{"content":"data: [DONE]"}}]}\n\n'),
    ),
    "[DONE] said in a text, then its usage": (
        "/v1/chat/completions",
        (FIRST, b'data: {"choices":[{"delta":{"content":"\\ndata: [DONE]\\n\\n"}}]}\n\n', b": bye\n\n"),
    ),
    "half of [DONE]": ("/v1/chat/completions", (FIRST, b"data: [DO")),
    "[DONE] in a comment": ("/v1/chat/completions", (FIRST, b": data: [DONE]\n\n")),
    "nothing at all": ("/v1/chat/completions", (b": hello\n\n",)),
    "message_stop said in a text": (
        "/v1/messages",
        (NAMED, b'event: content_block_delta\ndata: {"delta":{"text":"event: message_stop"}}\n\n'),
    ),
    "half of message_stop": ("/v1/messages", (NAMED, b"event: message_st")),
    "message_stop without its data": ("/v1/messages", (NAMED, b"event: message_stop\n")),
    "response.completed said in a text": (
        "/v1/responses",
        (b'event: response.output_text.delta\ndata: {"delta":"event: response.completed"}\n\n',),
    ),
    "half of response.completed": (
        "/v1/responses",
        (
            b'event: response.created\ndata: {"type":"response.created"}\n\n',
            b'event: response.completed\ndata: {"ty',
        ),
    ),
}
"""Streams that end cleanly as HTTP goes, without their dialect's end."""


class Stage:
    """A gateway before one rogue backend, which plays what each test has it play."""

    def __init__(self, gateway: Gateway, backend: Rogue) -> None:
        self.gateway = gateway
        self.backend = backend

    def plays(self, *pieces: bytes, then: Then = Then.KEEP) -> None:
        self.backend.script, self.backend.then = [stream_head(), *pieces], then
        self.backend.gone.clear()

    def ask(self, path: str) -> bytes:
        """The body that a client gets."""
        asked = GENERATING[path]("m", stream=True)
        return httpx.post(self.gateway.url + path, json=asked, trust_env=False).content

    def count(self, status: int) -> float:
        return self.gateway.metric("penstock_requests_total", model="m", status=str(status))


@pytest.fixture(scope="module")
def stage(simulated: None) -> Iterator[Stage]:
    config = {"health": {"interval_s": 60, "fall": 100}}
    with rogue() as backend, gateway(one_model(backend.url) | config) as running:
        yield Stage(running, backend)


@pytest.mark.parametrize("what", LOOKALIKES)
def test_what_only_looks_like_the_end_is_a_failure(stage: Stage, what: str) -> None:
    path, pieces = LOOKALIKES[what]
    stage.plays(*[chunk(piece) for piece in pieces], chunk(b""))
    before = stage.count(502)
    answer = stage.ask(path)
    assert answer.startswith(b"".join(pieces))
    added = answer[len(b"".join(pieces)) :]
    assert b'"error"' in added, "a silent end"
    # a frame must begin on a line of its own, or no parser finds it
    assert (b"".join(pieces) + added).split(b'"error"')[0].count(b"\n\n") > len(pieces) - 1
    name, data = _events(answer)[-1]
    assert data["error"]["status"] == 502
    assert name == ("" if path == "/v1/chat/completions" else "error")
    wait_until(lambda: stage.count(502) == before + 1, 10, "the count")


@pytest.mark.parametrize(
    ("path", "pieces"),
    [
        ("/v1/chat/completions", (FIRST, b"dat", b"a: [DO", b"NE]\n", b"\n")),
        ("/v1/chat/completions", (FIRST.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n")),
        ("/v1/chat/completions", (FIRST + b"data: [DONE]\n\n",)),
        ("/v1/messages", (NAMED, b"event: mess", b'age_stop\ndata: {"type":"message_stop"}\n\n')),
        (
            "/v1/messages",
            (NAMED.replace(b"\n", b"\r\n"), b'event: message_stop\r\ndata: {"type":"message_stop"}\r\n\r\n'),
        ),
        (
            "/v1/responses",
            (b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',),
        ),
    ],
    ids=["in pieces", "with CRLF", "in one piece", "messages in pieces", "messages with CRLF", "responses"],
)
def test_a_whole_stream_is_whole_however_it_is_cut(
    stage: Stage, path: str, pieces: tuple[bytes, ...]
) -> None:
    stage.plays(*[chunk(piece) for piece in pieces], chunk(b""))
    before = stage.count(200)
    assert stage.ask(path) == b"".join(pieces)
    wait_until(lambda: stage.count(200) == before + 1, 10, "the count")


def test_an_error_frame_that_arrives_in_two_reads_is_counted_as_an_error(stage: Stage) -> None:
    frame = b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}\n\n'
    pieces = (FIRST, frame[:9], frame[9:], b"data: [DONE]\n\n")
    stage.plays(*[chunk(piece) for piece in pieces], chunk(b""))
    assert stage.ask("/v1/chat/completions") == b"".join(pieces)
    wait_until(lambda: stage.count(500) == 1, 10, "the count")


@pytest.mark.parametrize("ending", [b"zz\r\n", b"5\r\nhelloXX", b"ffffffffffffffffff\r\n"], ids=repr)
@pytest.mark.parametrize("path", GENERATING)
def test_a_garbage_chunk_ends_the_stream_with_an_error_frame(stage: Stage, path: str, ending: bytes) -> None:
    first = NAMED if path in ("/v1/messages", "/v1/responses") else FIRST
    stage.plays(chunk(first), ending, then=Then.HANG)
    assert _events(stage.ask(path))[-1][1]["error"]["status"] == 502
    assert stage.backend.gone.wait(10)


@pytest.mark.protocols("http1", "http2")
def test_a_gateway_is_well_after_all_this(faulty_target: Target) -> None:
    running = faulty_target.gateway
    assert isinstance(running, Gateway)
    assert faulty_target.post("/v1/chat/completions", chat(faulty_target.model)).status == 200
    assert "Traceback" not in running.log()
