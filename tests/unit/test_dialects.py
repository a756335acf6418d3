"""When a stream is whole, in each dialect, in any pieces; and what the real SDKs make of our error frames."""

import importlib
import itertools
import json
from collections.abc import Iterator

import anthropic._streaming
import openai._streaming
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.dialects import WORDS
from penstock.gateway.endpoints import Dialect
from penstock.gateway.errors import Fault, Kind

CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
VLLM_ERROR = (
    b'data: {"error": {"message": "EngineCore died", "type": "BadRequest", "param": null, "code": 400}}\n\n'
)

DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"%b"}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
TEXT = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"%b"}\n\n'

FAKES = (
    rb"data: [DONE]",
    rb"\n\ndata: [DONE]\n\n",
    rb"event: message_stop\n",
    rb"\nevent: message_stop\ndata: {}\n\n",
    rb"\nevent: response.completed\n",
    rb"data: {\"error\": {\"code\": 500}}",
    rb"\n\ndata: {\"error\": {\"code\": 500}}\n\n",
)
"""What a model may write to look like the end of a stream, as it stands inside JSON."""

# dialect, stream, may it end here, the status that metrics count
STREAMS: list[tuple[Dialect, bytes, bool, int]] = [
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + DONE, True, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + DONE.replace(b"\n", b"\r\n"), True, 200),
    (Dialect.OPENAI, DONE, True, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + b"data:[DONE]\n\n", True, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + DONE + b": bye\n\n", True, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + DONE.rstrip(), True, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + b"data: [DONE] nope\n\n", False, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH + b"data: [DONE]]\n\n", False, 200),
    (Dialect.OPENAI, CHUNK % b"a" + FINISH, False, 200),
    (Dialect.OPENAI, CHUNK % b"a", False, 200),
    (Dialect.OPENAI, b"", False, 200),
    (Dialect.OPENAI, CHUNK % b"a" + VLLM_ERROR + DONE, True, 400),
    (Dialect.OPENAI, CHUNK % b"a" + VLLM_ERROR, True, 400),
    (Dialect.OPENAI, VLLM_ERROR.replace(b"\n", b"\r\n"), True, 400),
    (Dialect.OPENAI, VLLM_ERROR.replace(b": ", b":").replace(b", ", b","), True, 400),
    (Dialect.OPENAI, VLLM_ERROR.replace(b"400", b'"503"'), True, 503),
    (Dialect.OPENAI, b'data: {"error":{"message":"x"}}\n\n' + DONE, True, 500),
    (Dialect.OPENAI, b'data: {"error":{"message":"x","code":"boom"}}\n\ndata: {"code":404}\n\n', True, 500),
    (Dialect.OPENAI, b'data: {"error": null, "choices": []}\n\n', False, 200),
    *((Dialect.OPENAI, CHUNK % fake, False, 200) for fake in FAKES),
    *((Dialect.OPENAI, CHUNK % (fake * 9), False, 200) for fake in FAKES),
    (Dialect.MESSAGES, DELTA % b"a" + STOP, True, 200),
    (Dialect.MESSAGES, DELTA % b"a" + STOP.replace(b"\n", b"\r\n"), True, 200),
    (Dialect.MESSAGES, DELTA % b"a" + b'event:message_stop\ndata:{"type":"message_stop"}\n\n', True, 200),
    (Dialect.MESSAGES, DELTA % b"a", False, 200),
    (Dialect.MESSAGES, DELTA % b"a" + DONE, False, 200),
    (Dialect.MESSAGES, DELTA % b"a" + b'event: error\ndata: {"type":"error"}\n\n', True, 500),
    *((Dialect.MESSAGES, DELTA % fake, False, 200) for fake in FAKES),
    (Dialect.RESPONSES, TEXT % b"a" + b"event: response.completed\ndata: {}\n\n", True, 200),
    (Dialect.RESPONSES, TEXT % b"a" + b"event: response.incomplete\ndata: {}\n\n", True, 200),
    (Dialect.RESPONSES, TEXT % b"a" + b"event: response.failed\ndata: {}\n\n", True, 500),
    (Dialect.RESPONSES, TEXT % b"a" + b"event: error\ndata: {}\n\n", True, 500),
    (Dialect.RESPONSES, b"event: response.completed.not\ndata: {}\n\n", False, 200),
    (Dialect.RESPONSES, TEXT % b"a" + DONE, False, 200),
    *((Dialect.RESPONSES, TEXT % fake, False, 200) for fake in FAKES),
]


def ended(dialect: Dialect, pieces: list[bytes]) -> tuple[bool, int]:
    end = WORDS[dialect].stream_end()
    for piece in pieces:
        end.feed(piece)
    return end.terminal(), end.status


@pytest.mark.parametrize(("dialect", "stream", "terminal", "status"), STREAMS)
def test_a_stream_ends_the_same_whole_byte_by_byte_and_at_every_split(
    dialect: Dialect, stream: bytes, terminal: bool, status: int
) -> None:
    assert ended(dialect, [stream]) == (terminal, status)
    assert ended(dialect, [stream[i : i + 1] for i in range(len(stream))]) == (terminal, status)
    for cut in range(len(stream)):
        assert ended(dialect, [stream[:cut], stream[cut:]]) == (terminal, status), cut


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 400), max_size=6))
def test_a_stream_ends_the_same_in_any_pieces(
    case: tuple[Dialect, bytes, bool, int], cuts: list[int]
) -> None:
    dialect, stream, terminal, status = case
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert ended(dialect, pieces) == (terminal, status)


@pytest.mark.parametrize(
    ("dialect", "stream", "terminal", "status"), [s for s in STREAMS if s[2] and s[3] == 200]
)
def test_no_prefix_of_a_good_stream_is_whole_before_its_last_event(
    dialect: Dialect, stream: bytes, terminal: bool, status: int
) -> None:
    last = stream.rfind(b"event" if dialect is not Dialect.OPENAI else b"[DONE]")
    assert not any(ended(dialect, [stream[:cut]])[0] for cut in range(last))


@given(st.sampled_from(Dialect), st.lists(st.binary(max_size=100), max_size=10))
def test_any_bytes_are_survived(dialect: Dialect, pieces: list[bytes]) -> None:
    _, status = ended(dialect, pieces)
    assert 200 <= status <= 599


@pytest.mark.parametrize("dialect", Dialect)
def test_what_is_remembered_of_a_stream_is_bounded(dialect: Dialect) -> None:
    end = WORDS[dialect].stream_end()
    start = {
        Dialect.OPENAI: b'data: {"error": {"message": "',
        Dialect.MESSAGES: b"event: ",
        Dialect.RESPONSES: b"",
    }
    end.feed(start[dialect])
    for _ in range(1000):
        end.feed(b"x" * 1000)
    kept = sum(len(getattr(end, name)) for name in ("_tail", "_frame") if hasattr(end, name))
    assert kept < 8192


# ---- our error frames, read by the SDKs' own decoders

FAULT = Fault(Kind.UPSTREAM_BROKEN, 'the backend "x" said\nnothing')


def decoded(module: object, data: bytes) -> list[tuple[str | None, object]]:
    decoder = module._streaming.SSEDecoder()  # type: ignore[attr-defined]

    def pieces() -> Iterator[bytes]:
        yield data

    return [(event.event, event.json()) for event in decoder.iter_bytes(pieces())]


@pytest.mark.parametrize("half", [b"", b'data: {"id":"c","choi', b"event: content_block", b"data: {}\n"])
@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("module", [openai, anthropic])
def test_the_sdks_decoders_read_our_frame_also_behind_a_half_event(
    dialect: Dialect, module: object, half: bytes
) -> None:
    frame = WORDS[dialect].error_frame(FAULT)
    event, data = decoded(module, frame)[0]
    assert event == (None if dialect is Dialect.OPENAI else "error")
    assert isinstance(data, dict)
    assert data["error"]["message"] == FAULT.message
    assert data["error"]["status"] == 502
    assert data["error"]["code"] == "upstream_broken"
    broken = b"\n\n" if half else b""
    *_, (last_event, last) = decoded(module, b"") or decoded(module, broken + frame)
    assert (last_event, last) == (event, data)


def client(dialect: Dialect, body: bytes) -> Iterator[object]:
    """The SDK's own stream over an answer of these bytes."""
    sdk = anthropic if dialect is Dialect.MESSAGES else openai
    # each release of an SDK has its own idea of which HTTP library is its own
    base = next(kind for kind in sdk.DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
    library = importlib.import_module(base.__module__.partition(".")[0])
    transport = library.MockTransport(
        lambda _: library.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    http = library.Client(transport=transport)
    messages = [{"role": "user", "content": "hi"}]
    if dialect is Dialect.MESSAGES:
        claude = anthropic.Anthropic(api_key="x", base_url="http://test", http_client=http, max_retries=0)
        return iter(claude.messages.create(model="m", max_tokens=5, messages=messages, stream=True))  # type: ignore[call-overload]
    gpt = openai.OpenAI(api_key="x", base_url="http://test/v1", http_client=http, max_retries=0)
    if dialect is Dialect.RESPONSES:
        return iter(gpt.responses.create(model="m", input="hi", stream=True))
    return iter(gpt.chat.completions.create(model="m", messages=messages, stream=True))  # type: ignore[call-overload]


BEGINNINGS = {
    Dialect.OPENAI: CHUNK % b"a",
    Dialect.MESSAGES: DELTA.replace(b'"delta":{', b'"index":0,"delta":{"type":"text_delta",') % b"a",
    Dialect.RESPONSES: TEXT % b"a",
}


@pytest.mark.parametrize("cut", [0, 1, 20, -1, -2, None])
@pytest.mark.parametrize("dialect", Dialect)
def test_the_sdks_raise_on_a_stream_that_we_end(dialect: Dialect, cut: int | None) -> None:
    begun = BEGINNINGS[dialect]
    piece = begun[:cut]
    broken = b"" if not piece or piece.endswith(b"\n\n") else b"\n\n"
    module = anthropic if dialect is Dialect.MESSAGES else openai
    with pytest.raises((module.APIError, ValueError)):
        list(client(dialect, begun + piece + broken + WORDS[dialect].error_frame(FAULT)))


# ---- what may be kept


def _chat(*events: str, done: bool = True) -> bytes:
    return b"".join(b"data: %b\n\n" % event.encode() for event in (*events, *(["[DONE]"] if done else [])))


def _delta(index: int = 0, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": finish}]})


USAGE = '{"choices":[],"usage":{"total_tokens":3}}'


@pytest.mark.parametrize(
    ("body", "choices", "kept"),
    [
        (_chat(_delta(), _delta(finish="stop"), USAGE), 1, True),
        (_chat(_delta(finish="length")), 1, True),
        (_chat(_delta(finish="tool_calls")).replace(b"\n", b"\r\n"), 1, True),
        (_chat(_delta(0), _delta(1), _delta(1, "stop"), _delta(0, "stop")), 2, True),
        (b": ping\n\n" + _chat(_delta(finish="stop")), 1, True),
        (_chat(_delta(finish="stop"), done=False), 1, False),
        (_chat(_delta()), 1, False),
        (_chat(), 1, False),
        (b"", 1, False),
        (_chat(_delta(0, "stop"), _delta(1)), 1, False),
        (_chat(_delta(0, "stop")), 2, False),
        (_chat(_delta(finish="abort")), 1, False),
        (_chat(_delta(finish="error")), 1, False),
        (_chat(_delta(finish="stop"), '{"error":{"message":"m","code":500}}'), 1, False),
        (_chat('{"error":"m"}'), 0, False),
        (_chat(_delta(finish="stop"), "{not json"), 1, False),
        (_chat(_delta(finish="stop")) + _chat(_delta(finish="stop")), 1, False),
        (_chat('{"choices":[{"index":"0"}]}', _delta(finish="stop")), 1, False),
        (_chat(_delta(finish="stop") * 2), 1, False),
        (_chat(_delta(finish="stop") * 2, ""), 1, False),
        (_chat(_delta(finish="stop") + "{\ndata: }"), 1, False),
        (_chat('{"x":1\ndata: }' + _delta(finish="stop")), 1, False),
        (_chat(_delta(finish="stop"), '{"x":' + "[" * 5000 + "]" * 5000 + "}"), 1, False),
        (_chat(_delta(finish="stop")).replace(b"stop", b"st\xffop"), 1, False),
        # a relay would not take them for whole
        (_chat(_delta(finish="stop")).replace(b"data: [DONE]", b"data:  [DONE]"), 1, False),
        (_chat(_delta(finish="stop")) + b": " + b"x" * 100 + b"\n\n", 1, False),
    ],
)
def test_a_chat_stream_is_kept_when_every_choice_finished(body: bytes, choices: int, kept: bool) -> None:
    assert WORDS[Dialect.OPENAI].may_keep_stream(body, choices) is kept


@pytest.mark.parametrize(
    ("dialect", "body", "kept"),
    [
        (Dialect.MESSAGES, b"event: message_start\ndata: {}\n\nevent: message_stop\ndata: {}\n\n", True),
        (Dialect.MESSAGES, b"event: message_start\ndata: {}\n\n", False),
        (Dialect.MESSAGES, b"event: error\ndata: {}\n\nevent: message_stop\ndata: {}\n\n", False),
        (Dialect.MESSAGES, b"event: message_stop\ndata: {}", False),
        (Dialect.RESPONSES, b"event: response.completed\ndata: {}\n\n", True),
        (Dialect.RESPONSES, b"event: response.incomplete\ndata: {}\n\n", False),
        (Dialect.RESPONSES, b"event: response.failed\ndata: {}\n\n", False),
        (Dialect.RESPONSES, b"event: error\ndata: {}\n\nevent: response.completed\ndata: {}\n\n", False),
    ],
)
def test_a_stream_of_events_is_kept_after_its_last_event_alone(
    dialect: Dialect, body: bytes, kept: bool
) -> None:
    assert WORDS[dialect].may_keep_stream(body, 1) is kept


@pytest.mark.parametrize(
    ("dialect", "body", "kept"),
    [
        (Dialect.OPENAI, b'{"choices":[{"finish_reason":"stop"}]}', True),
        (Dialect.OPENAI, b'{"data":[]}', True),
        (Dialect.OPENAI, b'{"choices":[{"finish_reason":"abort"}]}', False),
        (Dialect.OPENAI, b'{"choices":[{"finish_reason": "error"}]}', False),
        (Dialect.MESSAGES, b'{"type":"message"}', True),
        (Dialect.RESPONSES, b'{"status":"completed"}', True),
        (Dialect.RESPONSES, b'{"status":"failed"}', False),
        (Dialect.RESPONSES, b'{"status":"incomplete"}', False),
        (Dialect.RESPONSES, b"{}", False),
        (Dialect.RESPONSES, b"not json", False),
    ],
)
def test_a_whole_answer_that_was_given_up_is_not_kept(dialect: Dialect, body: bytes, kept: bool) -> None:
    assert WORDS[dialect].may_keep_whole(body) is kept
