"""What headers become on their way: ours, theirs, nobody's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from ..support.gateway import Gateway, gateway, one_model
from .bodies import GENERATING, chat, completion
from .rogue import Rogue, reply, rogue
from .target import Target

PATH = "/v1/chat/completions"

pytestmark = pytest.mark.protocols("http1", "http2")


# ---- x-request-id


@pytest.mark.parametrize("value", ["a", "0" * 128, "mine-17", "!#$%&'*+-.^_`|~:/?@[]{}()<>=;,\"\\"])
def test_a_good_request_id_is_echoed_and_sent_upstream(target: Target, guarded: Gateway, value: str) -> None:
    answer = target.post(PATH, chat(target.model), headers={"x-request-id": value})
    assert answer.header("x-request-id") == value
    assert target.tap.of(value).request.values("x-request-id") == [value.encode()]


@pytest.mark.parametrize("value", [b"", b"0" * 129, "né".encode(), b"tab\there", b"caf\xe9"], ids=repr)
def test_a_bad_request_id_is_replaced(target: Target, guarded: Gateway, value: bytes) -> None:
    with httpx.Client(trust_env=False) as client:
        response = client.post(
            target.url + PATH,
            json=chat(target.model),
            headers=[(b"authorization", f"Bearer {target.key}".encode()), (b"x-request-id", value)],
        )
    assert response.status_code == 200
    made = response.headers["x-request-id"]
    assert made.encode("latin-1") != value
    assert 1 <= len(made) <= 128
    assert made.isascii()
    assert target.tap.of(made).response.whole


def test_a_request_without_an_id_is_given_one_of_its_own(target: Target, guarded: Gateway) -> None:
    made = {target.post(PATH, chat(target.model)).header("x-request-id") for _ in range(5)}
    assert len(made) == 5
    for request_id in made:
        assert request_id
        assert target.tap.of(request_id).status == 200


@pytest.mark.parametrize("path", GENERATING)
def test_a_stream_carries_its_request_id(target: Target, guarded: Gateway, path: str) -> None:
    request_id = f"conformance-{uuid4().hex}"
    answer = target.post(
        path, GENERATING[path](target.model, stream=True), headers={"x-request-id": request_id}
    )
    assert answer.header("x-request-id") == request_id


# ---- tracing


def test_a_trace_is_continued(target: Target, guarded: Gateway) -> None:
    trace = uuid4().hex
    request_id = f"conformance-{trace}"
    target.post(
        PATH,
        chat(target.model),
        headers={
            "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
            "tracestate": "vendor=value,other=1",
            "x-request-id": request_id,
        },
    )
    sent = target.tap.of(request_id).request
    (parent,) = sent.values("traceparent")
    assert parent.startswith(f"00-{trace}-".encode())
    assert parent.endswith(b"-01")
    assert sent.values("tracestate") == [b"vendor=value,other=1"]


# ---- credentials


@pytest.mark.parametrize("path", [*GENERATING, "/tokenize"])
def test_a_clients_credentials_never_reach_a_backend(target: Target, guarded: Gateway, path: str) -> None:
    request_id = f"conformance-{uuid4().hex}"
    secret = f"secret-{uuid4().hex}"
    make = GENERATING.get(path, lambda model: {"model": model, "prompt": "x"})
    answer = target.post(
        path,
        make(target.model),
        headers={
            "authorization": f"Bearer {secret}",
            "x-api-key": secret,
            "api-key": secret,
            "cookie": f"session={secret}",
            "proxy-authorization": f"Basic {secret}",
            "x-request-id": request_id,
        },
    )
    assert answer.status == 200, answer.body
    sent = target.tap.of(request_id).request
    assert [name for name, value in sent.headers if secret.encode() in value] == []
    assert sent.values("authorization") == [f"Bearer {target.backend_key}".encode()]


def test_a_backends_credentials_never_reach_a_client(target: Target, guarded: Gateway) -> None:
    for path, body in ((PATH, chat(target.model)), (PATH, chat("no-such-model")), ("/v1/models", None)):
        answer = target.post(path, body) if body else target.ask("GET", path)
        assert target.backend_key.encode() not in answer.body
        assert all(target.backend_key not in value for _, value in answer.headers)
    assert target.backend_key not in guarded.log()
    assert target.key not in guarded.log()


# ---- hop by hop


def test_hop_by_hop_headers_are_not_sent_upstream(target: Target, guarded: Gateway) -> None:
    request_id = f"conformance-{uuid4().hex}"
    answer = target.post(
        PATH,
        chat(target.model),
        headers={
            "connection": "keep-alive, x-hop",
            "x-hop": "1",
            "keep-alive": "timeout=7",
            "te": "trailers",
            "trailer": "x-later",
            "upgrade": "h2c",
            "proxy-connection": "keep-alive",
            "x-request-id": request_id,
        },
    )
    assert answer.status == 200, answer.body
    names = {name for name, _ in target.tap.of(request_id).request.headers}
    assert names.isdisjoint({"x-hop", "keep-alive", "te", "trailer", "upgrade", "proxy-connection"})


def test_the_host_and_the_length_are_ours(target: Target, guarded: Gateway) -> None:
    request_id = f"conformance-{uuid4().hex}"
    target.post(PATH, chat(target.model), headers={"x-request-id": request_id, "host": "public.example"})
    sent = target.tap.of(request_id).request
    assert sent.values("host") == [target.backend.removeprefix("http://").encode()]
    assert sent.values("content-length") == [str(len(sent.body)).encode()]
    assert sent.values("transfer-encoding") == []


def test_a_header_of_the_clients_own_is_sent_upstream(target: Target, guarded: Gateway) -> None:
    request_id = f"conformance-{uuid4().hex}"
    headers = {
        "x-session": "abc",
        "user-agent": "tester/1",
        "anthropic-version": "2023-06-01",
        "x-request-id": request_id,
    }
    target.post(PATH, chat(target.model), headers=headers)
    sent = target.tap.of(request_id).request
    assert sent.values("x-session") == [b"abc"]
    assert sent.values("user-agent") == [b"tester/1"]
    assert sent.values("anthropic-version") == [b"2023-06-01"]


def test_a_header_that_is_not_ascii_is_not_sent_upstream(target: Target, guarded: Gateway) -> None:
    request_id = f"conformance-{uuid4().hex}"
    with httpx.Client(trust_env=False) as client:
        response = client.post(
            target.url + PATH,
            json=chat(target.model),
            headers=[
                (b"authorization", f"Bearer {target.key}".encode()),
                (b"x-request-id", request_id.encode()),
                (b"x-note", "café".encode()),
            ],
        )
    assert response.status_code == 200
    assert target.tap.of(request_id).request.values("x-note") == []


# ---- what the gateway says of itself


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_names_its_backend_and_the_attempts(target: Target, guarded: Gateway, stream: bool) -> None:
    answer = target.post(PATH, chat(target.model, stream=stream))
    assert answer.header("x-penstock-attempts") == "1"
    backend = answer.header("x-penstock-backend")
    assert backend
    assert target.backend_key not in backend


def test_a_plain_answer_has_its_length_and_a_stream_has_none(target: Target, guarded: Gateway) -> None:
    plain = target.post("/v1/completions", completion(target.model))
    assert plain.header("content-length") == str(len(plain.body))
    assert plain.header("transfer-encoding") is None
    stream = target.post("/v1/completions", completion(target.model, stream=True))
    assert stream.header("content-length") is None


def test_a_kept_connection_serves_many_requests(target: Target, guarded: Gateway) -> None:
    """Plain, streamed and refused ones, in turn, on one socket: nothing is left over between them."""
    host, port = target.url.removeprefix("http://").split(":")
    with httpx.Client(trust_env=False, limits=httpx.Limits(max_connections=1)) as client:
        for body in [chat(target.model), chat(target.model, stream=True), chat("no-such-model"), {}] * 3:
            expected = 400 if not body else 404 if body["model"] == "no-such-model" else 200
            answer = client.post(
                target.url + PATH, json=body, headers={"authorization": f"Bearer {target.key}"}
            )
            assert answer.status_code == expected
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        # two requests in one segment: two answers, in order
        sock.sendall(
            b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.count(b"HTTP/1.1 200 ") == 2
    assert data.rstrip().endswith(b"}")


# ---- a backend that says too much

LOUD = reply(
    b'{"ok": true}',
    headers=(
        b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: x-later\r\n"
        b"Upgrade: h2c\r\nX-Request-Id: from-backend\r\nX-Penstock-Backend: forged\r\nX-Penstock-Attempts: 99\r\n"
        b"Server: secret-server\r\nX-Model-Load: 0.5\r\nX-Note: caf\xc3\xa9\r\nX-Twice: one\r\nX-Twice: two\r\n"
    ),
)


@pytest.fixture
def loud(simulated: None) -> Iterator[tuple[Gateway, Rogue]]:
    with rogue(LOUD) as backend, gateway(one_model(backend.url)) as running:
        yield running, backend


def test_a_backends_private_headers_do_not_reach_the_client(loud: tuple[Gateway, Rogue]) -> None:
    running, _ = loud
    response = httpx.post(
        running.url + PATH, json=chat("m"), headers={"x-request-id": "mine-1"}, trust_env=False
    )
    assert response.status_code == 200
    assert response.json() == {"ok": True}
    names = {name.lower() for name in response.headers}
    assert names.isdisjoint({"x-hop", "keep-alive", "proxy-authenticate", "trailer", "upgrade", "x-note"})
    assert response.headers.get_list("x-request-id") == ["mine-1"]
    assert response.headers.get_list("x-penstock-attempts") == ["1"]
    assert response.headers.get_list("x-penstock-backend") != ["forged"]
    assert len(response.headers.get_list("x-penstock-backend")) == 1
    assert "secret-server" not in response.headers.get("server", "")
    assert response.headers["x-model-load"] == "0.5"
    assert response.headers.get_list("x-twice") == ["one", "two"]
