"""The error table: who asks for something that cannot be gets the right status, in the words of the API that was asked.

What upstreams do wrong is in `test_upstream_failures.py`.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ..support.gateway import Gateway
from ..support.procs import wait_until
from .bodies import AUDIO, PATHS, POOLING, TEXT, WAVE, chat, completion, message, response
from .conftest import DEAD
from .target import Answer, Target

MAX_BODY = 10 * 1024 * 1024
JSON = {"content-type": "application/json"}


def assert_error(answer: Answer, status: int, path: str) -> dict[str, Any]:
    """The status and the error object of the dialect that `path` speaks; returns the object."""
    assert answer.status == status, answer.body
    assert (answer.header("content-type") or "").startswith("application/json")
    assert answer.header("content-length") == str(len(answer.body))
    assert answer.header("x-request-id")
    body = answer.json()
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
    else:
        assert set(body) == {"error"}
        assert {"message", "type", "param", "code"} <= set(error)
        assert error["param"] is None or isinstance(error["param"], str)
    return error


def _body(path: str, model: str) -> Any:
    return (TEXT | POOLING)[path](model)


# ---- 400


@pytest.mark.parametrize("path", [*TEXT, *POOLING])
@pytest.mark.parametrize(
    "content",
    [
        *(
            b"{",
            b"nonsense",
            b'{"model": "m", }',
            b"[1, 2]",
            b'"text"',
            b"null",
            b"17",
            b"{}{}",
            b'{"a":1}garbage',
        ),
        *(
            b"\xff\xfe{}",
            b'{"model": "\xe9"}',
            b'{"model": NaN}',
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"\0" * 10,
        ),
        *(b'{"model": "\\ud800"}', b"   "),
    ],
    ids=lambda content: repr(content[:18]),
)
def test_a_body_that_is_no_object_is_400(target: Target, guarded: Gateway, path: str, content: bytes) -> None:
    assert_error(target.ask("POST", path, content=content, headers=JSON), 400, path)


@pytest.mark.parametrize("path", [*TEXT, *POOLING])
def test_a_body_without_a_model_is_400_and_says_so(target: Target, guarded: Gateway, path: str) -> None:
    body = _body(path, target.model)
    del body["model"]
    error = assert_error(target.post(path, body), 400, path)
    assert "model" in error["message"]
    if not path.startswith("/v1/messages"):
        assert error["param"] == "model"


@pytest.mark.parametrize("path", [*TEXT, *POOLING])
@pytest.mark.parametrize(
    ("field", "value"), [("model", 5), ("model", None), ("model", ""), ("stream", "yes")]
)
def test_a_model_or_stream_of_the_wrong_type_is_400(
    target: Target, guarded: Gateway, path: str, field: str, value: object
) -> None:
    error = assert_error(target.post(path, {**_body(path, target.model), field: value}), 400, path)
    if not path.startswith("/v1/messages"):
        assert error["param"] == field


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("/v1/chat/completions", {"messages": "hello"}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": None}, "messages"),
        ("/v1/chat/completions", {"messages": [USER, USER, {"role": 5, "content": "x"}]}, "messages[2].role"),
        ("/v1/chat/completions", {"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ("/v1/chat/completions", {"messages": [USER, "x"]}, "messages[1]"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/v1/chat/completions", {"temperature": "hot"}, "temperature"),
        ("/v1/chat/completions", {"temperature": -1}, "temperature"),
        ("/v1/chat/completions", {"top_p": "x"}, "top_p"),
        ("/v1/chat/completions", {"n": 0}, "n"),
        ("/v1/chat/completions", {"n": 1.5}, "n"),
        ("/v1/chat/completions", {"max_tokens": "many"}, "max_tokens"),
        ("/v1/chat/completions", {"seed": "x"}, "seed"),
        ("/v1/chat/completions", {"tools": "x"}, "tools"),
        ("/v1/chat/completions", {"stream_options": 5}, "stream_options"),
        ("/v1/chat/completions", {"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ("/v1/completions", {"prompt": {"a": 1}}, "prompt"),
        ("/v1/completions", {"temperature": [1]}, "temperature"),
        ("/v1/embeddings", {"input": 5}, "input"),
        ("/v1/responses", {"input": 5}, "input"),
        ("/v1/responses", {"store": "yes"}, "store"),
        ("/v1/responses", {"previous_response_id": 5}, "previous_response_id"),
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_or_range_is_named_by_its_path(
    target: Target, guarded: Gateway, path: str, change: dict[str, Any], param: str
) -> None:
    before = len(target.tap.exchanges())
    error = assert_error(target.post(path, {**_body(path, target.model), **change}), 400, path)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert target.tap.exchanges()[before:] == []


def test_a_bad_message_on_the_messages_endpoint_is_named_in_words(target: Target, guarded: Gateway) -> None:
    bad = {**message(target.model), "messages": [USER, {"role": 5, "content": "x"}]}
    error = assert_error(target.post("/v1/messages", bad), 400, "/v1/messages")
    assert error["type"] == "invalid_request_error"
    assert "messages[1].role" in error["message"]


@pytest.mark.parametrize("path", AUDIO)
def test_a_form_without_a_model_is_400(target: Target, guarded: Gateway, path: str) -> None:
    error = assert_error(target.ask("POST", path, files={"file": ("a.wav", WAVE)}), 400, path)
    assert error["param"] == "model"


@pytest.mark.parametrize("path", AUDIO)
@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x"]
)
def test_a_broken_form_is_400(target: Target, guarded: Gateway, path: str, kind: str) -> None:
    answer = target.ask("POST", path, content=b"--y\r\nnonsense", headers={"content-type": kind})
    assert_error(answer, 400, path)


# ---- 404


@pytest.mark.parametrize("path", [*TEXT, *POOLING])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_never_configured_is_404_and_the_models_are_listed(
    target: Target, guarded: Gateway, path: str, stream: bool
) -> None:
    body = {**_body(path, "no-such-model"), "stream": stream}
    error = assert_error(target.post(path, body), 404, path)
    assert all(name in error["message"] for name in target.names)
    if path.startswith("/v1/messages"):
        assert error["type"] == "not_found_error"
    else:
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"


@pytest.mark.parametrize("path", AUDIO)
def test_a_form_for_a_model_never_configured_is_404(target: Target, guarded: Gateway, path: str) -> None:
    answer = target.ask("POST", path, data={"model": "no-such-model"}, files={"file": ("a.wav", WAVE)})
    assert assert_error(answer, 404, path)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v2/chat/completions", "/v1/chat/completions/", "/favicon.ico"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(target: Target, guarded: Gateway, method: str, path: str) -> None:
    assert_error(target.ask(method, path), 404, path)


# ---- 405


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_405_and_the_right_one_is_told(
    target: Target, guarded: Gateway, method: str, path: str
) -> None:
    answer = target.ask(method, path)
    assert_error(answer, 405, path)
    assert "POST" in (answer.header("allow") or "")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", "GET"),
        ("DELETE", f"/v1/models/{DEAD}", "GET"),
        ("POST", "/health", "GET"),
        ("PUT", "/v1/responses/resp_1", "GET"),
        ("GET", "/v1/responses/resp_1/cancel", "POST"),
    ],
)
def test_a_wrong_method_on_what_is_read_is_405(
    target: Target, guarded: Gateway, method: str, path: str, allowed: str
) -> None:
    answer = target.ask(method, path, json={} if method != "GET" else None)
    assert_error(answer, 405, path)
    assert allowed in (answer.header("allow") or "")


# ---- 411, 413, 415


def _raw(target: Target, head: str, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends a head and pieces of a body as they stand; status, headers and body of the first answer."""
    url = urlsplit(target.url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as sock:
        try:
            sock.sendall(head.format(host=url.netloc, key=target.key).encode("latin-1"))
            for piece in pieces:
                sock.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            # it has answered and will read no more
            pass
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            assert more, f"the connection ended without an answer, after {data!r}"
            data += more
        top, _, body = data.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        while len(body) < int(headers.get("content-length", 0)):
            body += sock.recv(65536)
        return int(lines[0].split()[1]), headers, body


def _raw_answer(target: Target, head: str, *pieces: bytes) -> Answer:
    status, headers, body = _raw(target, head, *pieces)
    return Answer(status, list(headers.items()), body)


HEAD = "POST {path} HTTP/1.1\r\nhost: {{host}}\r\nauthorization: Bearer {{key}}\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize"])
def test_a_post_without_a_body_is_refused(target: Target, guarded: Gateway, path: str) -> None:
    assert_error(_raw_answer(target, HEAD.format(path=path) + "\r\n"), 411, path)
    assert_error(_raw_answer(target, HEAD.format(path=path) + "content-length: 0\r\n\r\n"), 411, path)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize"])
def test_a_body_said_to_be_over_the_limit_is_413_before_it_is_sent(
    target: Target, guarded: Gateway, path: str
) -> None:
    head = HEAD.format(path=path) + f"content-length: {MAX_BODY + 1}\r\n\r\n"
    error = assert_error(_raw_answer(target, head), 413, path)
    assert re.search(r"10 ?MiB|10485760", error["message"])


def test_a_body_that_grows_over_the_limit_is_413(target: Target, guarded: Gateway) -> None:
    path = "/v1/chat/completions"
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    answer = _raw_answer(target, HEAD.format(path=path) + "transfer-encoding: chunked\r\n\r\n", *[piece] * 12)
    assert_error(answer, 413, path)


def test_a_body_of_exactly_the_limit_is_taken(generated: Target, guarded: Gateway) -> None:
    start = json.dumps({**chat(generated.model), "padding": ""}).encode()[:-2]
    content = start + b"x" * (MAX_BODY - len(start) - 2) + b'"}'
    assert len(content) == MAX_BODY
    answer = generated.ask("POST", "/v1/chat/completions", content=content, headers=JSON)
    assert answer.status == 200, answer.body[:500]


@pytest.mark.parametrize("path", [*TEXT, *POOLING])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_that_is_not_json_is_415(target: Target, guarded: Gateway, path: str, kind: str) -> None:
    content = json.dumps(_body(path, target.model)).encode()
    assert_error(target.ask("POST", path, content=content, headers={"content-type": kind}), 415, path)


@pytest.mark.parametrize("path", AUDIO)
def test_a_body_that_is_no_form_is_415(target: Target, guarded: Gateway, path: str) -> None:
    assert_error(target.post(path, {"model": target.model}), 415, path)


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
def test_json_may_name_its_charset(target: Target, kind: str) -> None:
    content = json.dumps(completion(target.model)).encode()
    assert (
        target.ask("POST", "/v1/completions", content=content, headers={"content-type": kind}).status == 200
    )


# ---- the request line and its headers


def test_http_1_1_without_a_host_is_400(target: Target, guarded: Gateway) -> None:
    body = json.dumps(chat(target.model)).encode()
    head = HEAD.format(path="/v1/chat/completions").replace("host: {host}\r\n", "")
    head += f"content-length: {len(body)}\r\n\r\n"
    assert_error(_raw_answer(target, head, body), 400, "/v1/chat/completions")


@pytest.mark.parametrize(
    "head",
    [
        "GARBAGE\r\n\r\n",
        "GET /v1/models\r\n\r\n",
        "GET /v1/models HTTP/9.9\r\nhost: x\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost : x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: nonsense\r\n\r\n",
    ],
    ids=repr,
)
def test_a_malformed_head_is_400_or_a_closed_door(target: Target, guarded: Gateway, head: str) -> None:
    url = urlsplit(target.url)
    before = len(target.tap.exchanges())
    with socket.create_connection((url.hostname, url.port), timeout=30) as sock:
        sock.sendall(head.encode())
        sock.shutdown(socket.SHUT_WR)
        try:
            answer = sock.recv(65536)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or re.match(rb"HTTP/1\.[01] (400|404|408|501|505) ", answer), answer
    assert target.tap.exchanges()[before:] == []


def test_a_length_beside_chunks_does_not_smuggle_a_second_request(target: Target, guarded: Gateway) -> None:
    """RFC 9112 §6.3: refused, or read as chunks; never a length that leaves bytes to be taken for a request."""
    before = len(target.tap.exchanges())
    head = HEAD.format(path="/v1/completions") + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    hidden = b"0\r\n\r\nPOST /sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    status, _, _ = _raw(target, head, hidden)
    assert status in (400, 411)
    assert target.tap.exchanges()[before:] == []


# ---- 503


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_a_healthy_backend_is_503(
    target: Target, guarded: Gateway, path: str, stream: bool
) -> None:
    body = {**_body(path, DEAD), "stream": stream}
    # until the probes have found out, the attempt itself fails: 502
    answer = wait_until(
        lambda: found if (found := target.post(path, body)).status != 502 else None, 30, "the probes' verdict"
    )
    assert answer is not None
    assert_error(answer, 503, path)
    assert int(answer.header("retry-after") or 0) >= 1


def test_a_dead_model_does_not_trouble_the_others(target: Target, guarded: Gateway) -> None:
    target.post("/v1/chat/completions", chat(DEAD))
    assert target.post("/v1/chat/completions", chat(target.model)).status == 200
    assert httpx.get(f"{target.url}/ready", trust_env=False).status_code == 200


def test_errors_carry_the_request_id(target: Target, guarded: Gateway) -> None:
    for path, body in (
        ("/v1/chat/completions", chat("no-such-model")),
        ("/v1/responses", response(DEAD)),
        ("/x", {}),
    ):
        answer = target.post(path, body, headers={"x-request-id": "mine-17"})
        assert answer.header("x-request-id") == "mine-17"
