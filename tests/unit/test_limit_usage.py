"""What an answer has cost, read from its bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.limits.estimate import completion_tokens, prompt_tokens
from penstock.gateway.limits.usage import StreamUsage, tokens_of
from penstock.gateway.parse import Parser, Request
from penstock.gateway.raw import RawRequest

CHAT = {
    "prompt_tokens": 7,
    "total_tokens": 12,
    "completion_tokens": 5,
    "prompt_tokens_details": {"total_tokens": 99},
}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def sse(*events: dict[str, Any] | str) -> bytes:
    return b"".join(
        b"data: " + (e if isinstance(e, str) else json.dumps(e)).encode() + b"\n\n" for e in events
    )


def message(*events: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: " + str(e["type"]).encode() + b"\ndata: " + json.dumps(e).encode() + b"\n\n" for e in events
    )


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (body(choices=[{"text": "x"}], usage=CHAT), 12),
        (body(usage=CHAT, choices=[{"text": "x"}]), 12),
        (body(data=[{"embedding": [0.1] * 99}], usage={"prompt_tokens": 3, "total_tokens": 3}), 3),
        (body(content=[{"text": "x"}], usage={"input_tokens": 4, "output_tokens": 9}), 13),
        (
            body(
                content=[{"input": {"usage": {"total_tokens": 1}}}],
                usage={"input_tokens": 4, "output_tokens": 9},
            ),
            13,
        ),
        (body(choices=[{"text": '"usage": {"total_tokens": 5}'}]), None),
        (body(choices=[{"text": "no"}], usage=None), None),
        (b"", None),
        (b'{"usage" : { "total_tokens" : 8', 8),
        (body(usage={"total_tokens": 99_999_999}), 99_999_999),
        # what no answer costs is not believed, and not read in part
        *(
            (b'{"usage":{"prompt_tokens":3,"total_tokens":%s}}' % absurd, 3)
            for absurd in (b"100000000", b"9" * 15, b"9" * 40, b"1e30", b"1E3", b"1.5", b"-4", b'"7"', b"[7]")
        ),
        (b'{"usage":{"total_tokens":1e30}}', None),
    ],
)
def test_a_whole_answer_says_what_it_cost(answer: bytes, tokens: int | None) -> None:
    assert tokens_of(answer) == tokens


DELTA = {"choices": [{"delta": {"content": "x"}}]}
START = {"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 0}}}
PIECE = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}
END = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 6}}
STREAMS = [
    (sse(DELTA, DELTA, {"choices": [], "usage": CHAT}, "[DONE]"), 12),
    (sse(*[{**DELTA, "usage": {**CHAT, "total_tokens": n}} for n in (8, 9)], "[DONE]"), 9),
    (message(START, *[PIECE] * 6, END, {"type": "message_stop"}), 26),
    (
        message(
            {"type": "response.created", "response": {"usage": None}},
            {
                "type": "response.completed",
                "response": {"usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}},
            },
        ),
        3,
    ),
    (sse(*[{**DELTA, "usage": None}] * 40, "[DONE]"), 141),
    (message(START, *[PIECE] * 6), 27),
    (b"", 100),
]


@given(stream=st.sampled_from(STREAMS), cuts=st.lists(st.integers(0, 4000)))
def test_a_stream_says_what_it_cost_however_it_is_cut(stream: tuple[bytes, int], cuts: list[int]) -> None:
    data, tokens = stream
    usage = StreamUsage()
    at = 0
    lines = [i for i in range(len(data)) if data.startswith(b"\n", i)]
    for cut in [*sorted({lines[c % len(lines)] for c in cuts if lines}), len(data)]:
        usage.feed(data[at:cut])
        at = cut
    assert usage.tokens(prompt=100) == tokens


def test_a_long_stream_is_not_kept() -> None:
    usage = StreamUsage()
    for _ in range(1000):
        usage.feed(sse(DELTA) * 10)
    usage.feed(sse({"choices": [], "usage": CHAT}, "[DONE]"))
    assert usage.tokens(prompt=1) == 12
    assert len(usage._tail) < 20_000
    assert len(usage._head) < 20_000


def request(path: str, **fields: Any) -> Request:
    raw = RawRequest("POST", path, "", "", "application/json", "id", body(model="m", **fields))
    return Parser().parse(ENDPOINTS[path], raw)


MESSAGES = [{"role": "user", "content": "x" * 4000}]


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 50}, 50),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_completion_tokens": 60, "max_tokens": 50}, 60),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 50, "n": 3}, 150),
        ("/v1/chat/completions", {"messages": MESSAGES}, 256),
        ("/v1/responses", {"input": "x" * 4000, "max_output_tokens": 70}, 70),
        ("/v1/embeddings", {"input": "x" * 4000}, 0),
    ],
)
def test_what_is_asked_for_is_reserved(path: str, fields: dict[str, Any], tokens: int) -> None:
    asked = request(path, **fields)
    assert completion_tokens(asked) == tokens
    assert 1000 <= prompt_tokens(asked) <= 1050


def test_a_body_full_of_what_looks_like_the_key_is_not_searched_to_its_beginning() -> None:
    said = b'{"usage":{"total_tokens":7}'
    assert tokens_of(said + b',"usage"' * 63 + b"}") == 7
    assert tokens_of(said + b',"usage"' * 64 + b"}") is None
