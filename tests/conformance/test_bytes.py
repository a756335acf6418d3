"""The client gets what the backend sent, and the backend gets what the client sent, byte for byte.

On every proxied endpoint. It is checked against what really passed the tap, so it holds before any backend.
"""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from .bodies import AUDIO, GENERATING, POOLING, TEXT, WAVE, chat
from .target import Target, assert_same

pytestmark = pytest.mark.protocols("http1", "http2")


@pytest.mark.parametrize("path", TEXT)
def test_a_plain_answer_is_the_backends_own(target: Target, path: str) -> None:
    answer, exchange = target.tapped(path, TEXT[path](target.model))
    assert answer.status == 200, answer.body
    assert_same(answer, exchange)
    assert exchange.target == path


@pytest.mark.parametrize("path", GENERATING)
def test_a_stream_is_the_backends_own(target: Target, path: str) -> None:
    answer, exchange = target.tapped(path, GENERATING[path](target.model, stream=True))
    assert answer.status == 200, answer.body
    assert (answer.header("content-type") or "").startswith("text/event-stream")
    assert_same(answer, exchange)


def test_a_stream_with_usage_and_logprobs_is_the_backends_own(target: Target) -> None:
    body = chat(
        target.model,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        logprobs=True,
        top_logprobs=2,
        n=2,
        temperature=1,
    )
    answer, exchange = target.tapped("/v1/chat/completions", body)
    assert_same(answer, exchange)
    assert b'"usage"' in answer.body


@pytest.mark.parametrize("path", POOLING)
def test_an_answer_of_a_pooling_model_is_the_backends_own(target: Target, path: str) -> None:
    if target.pooling is None:
        pytest.skip("the backend has no pooling model")
    answer, exchange = target.tapped(path, POOLING[path](target.pooling), tap=target.pooling_tap)
    # whatever a real server says of a task that its model has not
    assert answer.status == 200 or target.real, answer.body
    assert_same(answer, exchange)
    assert exchange.target == path


@pytest.mark.parametrize("path", AUDIO)
def test_a_form_reaches_the_backend_as_it_was_sent(target: Target, path: str) -> None:
    request_id = f"conformance-{uuid4().hex}"
    answer = target.ask(
        "POST",
        path,
        data={"model": target.model, "language": "en"},
        files={"file": ("tower.wav", WAVE, "audio/wav")},
        headers={"x-request-id": request_id},
    )
    exchange = target.tap.of(request_id)
    assert answer.status == 200 or target.real, answer.body
    assert_same(answer, exchange)
    kind = exchange.request.values("content-type")[0]
    assert kind.startswith(b"multipart/form-data; boundary=")
    boundary = kind.partition(b"boundary=")[2]
    assert exchange.request.body.startswith(b"--" + boundary)
    assert exchange.request.body.rstrip().endswith(b"--" + boundary + b"--")
    assert WAVE in exchange.request.body


def test_the_body_reaches_the_backend_untouched(target: Target) -> None:
    odd = (
        b'{ "stream" :false,\r\n\t"model":"%b", '
        b'"messages":[{"content":"\\u00e9\xc3\xa9 \\ud83d\\uddfc","role":"user"}],'
        b' "max_tokens":4, "unknown":{"b":1,"a":1.0e2,"c":[ ]}, "temperature":0.0 }\n' % target.model.encode()
    )
    request_id = f"conformance-{uuid4().hex}"
    answer = target.ask(
        "POST",
        "/v1/chat/completions",
        content=odd,
        headers={"content-type": "application/json", "x-request-id": request_id},
    )
    exchange = target.tap.of(request_id)
    assert answer.status == 200, answer.body
    assert exchange.request.body == odd
    assert_same(answer, exchange)


def test_what_the_backend_says_of_a_bad_request_is_passed_on(target: Target) -> None:
    """A range that only the server knows: far more tokens than its context holds."""
    answer, exchange = target.tapped(
        "/v1/chat/completions", chat(target.model, top_logprobs=10_000, logprobs=True)
    )
    if not target.real and answer.status == 200:
        pytest.skip("the simulator takes any number of logprobs")
    assert answer.status == 400
    assert_same(answer, exchange)


def test_a_large_body_reaches_the_backend_whole(generated: Target) -> None:
    body = chat(generated.model, padding=["x" * 1000] * 3000)
    answer, exchange = generated.tapped("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    assert len(exchange.request.body) > 3_000_000
    assert json.loads(exchange.request.body) == body
    assert_same(answer, exchange)


def test_a_large_answer_comes_back_whole(generated: Target) -> None:
    """Embeddings of many texts: well over what is passed on in one piece."""
    texts = [f"text {n}" for n in range(1500)]
    body = {"model": generated.pooling, "input": texts}
    answer, exchange = generated.tapped("/v1/embeddings", body, tap=generated.pooling_tap)
    assert len(answer.body) > 300_000
    assert answer.header("content-length") == str(len(answer.body))
    assert_same(answer, exchange)
