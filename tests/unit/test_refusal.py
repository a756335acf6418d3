"""What an error answer becomes in a stream that is open, in each dialect's own frame."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.dialects import WORDS
from penstock.gateway.dialects.refusal import Refusal, refusal
from penstock.gateway.endpoints import Dialect
from penstock.gateway.errors import Kind

VLLM = {"error": {"message": "too long", "type": "BadRequestError", "param": "messages", "code": 400}}
OLD = {
    "object": "error",
    "message": "too long",
    "type": "BadRequestError",
    "param": "messages",
    "code": 400,
}
ANTHROPIC = {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}}


def frame(dialect: Dialect, status: int, body: Any) -> tuple[str, dict[str, Any]]:
    text = WORDS[dialect].error_frame(refusal(status, json.dumps(body).encode())).decode()
    assert text.endswith("\n\n")
    name = ""
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            return name, json.loads(value)
    raise AssertionError(text)


@pytest.mark.parametrize("body", [VLLM, OLD], ids=["object", "flat"])
def test_vllms_words_are_passed_on_with_its_status(body: dict[str, Any]) -> None:
    name, data = frame(Dialect.OPENAI, 400, body)
    assert name == ""
    assert data == {
        "error": {
            "message": "too long",
            "type": "BadRequestError",
            "param": "messages",
            "code": 400,
            "status": 400,
        }
    }
    name, data = frame(Dialect.RESPONSES, 400, body)
    assert name == "error"
    assert data["type"] == "error"
    assert data["code"] == "400"
    assert data["message"] == "too long"
    assert data["param"] == "messages"
    assert data["sequence_number"] == 0
    assert data["error"]["status"] == 400


@pytest.mark.parametrize("body", [VLLM, ANTHROPIC], ids=["openai", "anthropic"])
def test_a_message_gets_anthropics_words(body: dict[str, Any]) -> None:
    name, data = frame(Dialect.MESSAGES, 400, body)
    assert name == "error"
    assert data == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "too long",
            "code": 400,
            "status": 400,
        },
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail":"Not here"}', "Not here"),
        (b'{"error":"queue is full"}', "queue is full"),
        (b'{"error":{"message":7}}', "the backend answered 503"),
        (b'{"detail":[{"loc":["body"]}]}', "the backend answered 503"),
        (b'{"error":{}}', "the backend answered 503"),
        (b"[1]", "the backend answered 503"),
        (b"<html>Bad Gateway</html>", "the backend answered 503"),
        (b"\xff\xfe", "the backend answered 503"),
        (b"[" * 60_000, "the backend answered 503"),
        (b'{"error":{"message":"' + b"x" * 70_000 + b'"}}', "the backend answered 503"),
        (b"", "the backend answered 503"),
    ],
    ids=["detail", "text", "number", "list", "empty", "array", "html", "bytes", "deep", "long", "nothing"],
)
def test_whatever_a_server_says_there_is_a_message_and_the_true_status(body: bytes, message: str) -> None:
    fault = refusal(503, body)
    assert fault.message == message
    assert fault.status == 503
    assert fault.type == "server_error"
    assert fault.code == 503


def test_a_long_message_is_cut() -> None:
    fault = refusal(400, json.dumps({"error": {"message": "x" * 50_000, "code": "c" * 999}}).encode())
    assert len(fault.message) == 8192
    assert isinstance(fault.code, str)
    assert len(fault.code) == 256


def test_a_success_that_is_no_stream_is_a_failure_of_the_backend() -> None:
    fault = refusal(200, b'{"choices":[]}')
    assert fault.kind is Kind.UPSTREAM_NO_STREAM
    assert fault.status == 502


@given(st.binary(max_size=300), st.integers(300, 599), st.sampled_from(list(Dialect)))
def test_no_answer_breaks_the_frame(body: bytes, status: int, dialect: Dialect) -> None:
    fault = refusal(status, body)
    assert isinstance(fault, Refusal)
    assert fault.status == status
    assert WORDS[dialect].error_frame(fault).count(b"\n\n") == 1
