"""What a client is told when a backend breaks before it has said anything: 502, 503 or 504, never a 200 or a hang."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import free_port, wait_until
from ..support.sim import simulator
from .bodies import GENERATING, chat
from .rogue import Rogue, Then, chunk, reply, rogue, stream_head

PATH = "/v1/chat/completions"
GOOD = reply(b'{"ok": true}')

pytestmark = pytest.mark.usefixtures("simulated")

#: Scripts that are no answer of HTTP's, each with what follows it.
BROKEN: dict[str, tuple[bytes, Then]] = {
    "closed without a word": (b"", Then.CLOSE),
    "reset without a word": (b"", Then.RESET),
    "not HTTP": (b"220 mail.example ESMTP\r\n", Then.CLOSE),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x28", Then.CLOSE),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-type: app", Then.CLOSE),
    "a status of two digits": (b"HTTP/1.1 99 Odd\r\ncontent-length: 0\r\n\r\n", Then.CLOSE),
    "status 600": (b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n", Then.CLOSE),
    "status 999": (b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n", Then.CLOSE),
    "switching protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        Then.CLOSE,
    ),
    "a body cut short": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        Then.CLOSE,
    ),
    "a body reset": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        Then.RESET,
    ),
    "chunks cut short": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(b"{}"),
        Then.CLOSE,
    ),
    "a bad chunk": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        Then.CLOSE,
    ),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x", Then.CLOSE),
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(b"{}")
        + chunk(b""),
        Then.CLOSE,
    ),
    "a negative length": (b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}", Then.CLOSE),
    "a flood of headers": (
        b"HTTP/1.1 200 OK\r\n"
        + b"".join(b"x-%d: y\r\n" % n for n in range(5000))
        + b"content-length: 0\r\n\r\n",
        Then.CLOSE,
    ),
    "an endless header": (
        b"HTTP/1.1 200 OK\r\nx-long: " + b"y" * (1 << 20) + b"\r\ncontent-length: 0\r\n\r\n",
        Then.CLOSE,
    ),
}


ODD: dict[str, tuple[bytes, Then, bytes]] = {
    "interim answers": (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + GOOD,
        Then.KEEP,
        b'{"ok": true}',
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[1]", Then.CLOSE, b"[1]"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n[1]", Then.CLOSE, b"[1]"),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(b"[1,")
        + chunk(b"2]")
        + b"0\r\nx-later: 1\r\n\r\n",
        Then.KEEP,
        b"[1,2]",
    ),
    "bytes after it": (GOOD + b"trailing garbage", Then.CLOSE, b'{"ok": true}'),
    "another type": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\n<p>hi",
        Then.KEEP,
        b"<p>hi",
    ),
}
"""Answers that the standard allows, each with what follows and the body they mean."""

SAID: tuple[tuple[bytes, bytes, bytes, bytes], ...] = (
    (b"500 Internal Server Error", b"text/html", b"<h1>boom</h1>", b""),
    (b"400 Bad Request", b"application/json", b'{"detail":"x" }', b""),
    (b"401 Unauthorized", b"application/json", b'{"error":"Unauthorized"}', b""),
    (b"404 Not Found", b"application/json", b'{"detail":"Not Found"}', b""),
    (b"422 Unprocessable Entity", b"application/json", b"[]", b""),
    (b"429 Too Many Requests", b"application/json", b'{"error":{"message":"slow"}}', b"Retry-After: 7\r\n"),
    (b"503 Service Unavailable", b"text/plain", b"loading", b"Retry-After: 9\r\n"),
    (b"507 Insufficient Storage", b"application/json", b"", b""),
    (b"418 I'm a teapot", b"text/plain; charset=latin-1", b"caf\xe9", b""),
)
"""Status line, content type, body and further headers of answers that are no success."""

ERROR_EVENT = b'data: {"detail":"boom"}'
_ERROR_HEAD = b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/event-stream\r\n"
CALLED_EVENTS = {
    "a short error called a stream": _ERROR_HEAD + b"content-length: 23\r\n\r\n" + ERROR_EVENT,
    "a chunked error called a stream": _ERROR_HEAD
    + b"transfer-encoding: chunked\r\n\r\n"
    + chunk(ERROR_EVENT)
    + chunk(b""),
}
"""Errors that have an event stream's type, and no terminal event."""

CHUNKED_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
HALF = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"


@contextmanager
def _full_house() -> Iterator[str]:
    """The URL of a port whose accept queue is full, so that the kernel answers no further SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            guest = stack.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


@dataclass
class House:
    """One gateway before every scripted backend; each backend is a model of its own, named by what it does."""

    gateway: Gateway
    rogues: dict[str, Rogue]

    def post(self, model: str, *, path: str = PATH, stream: bool = False) -> httpx.Response:
        return post(self.gateway, GENERATING[path](model, stream=stream), path)

    def count(self, model: str, status: int) -> float:
        return self.gateway.metric("penstock_requests_total", model=model, status=str(status))


@pytest.fixture(scope="module")
def house(simulated: None) -> Iterator[House]:
    with ExitStack() as stack:
        rogues: dict[str, Rogue] = {}
        models: dict[str, Any] = {}

        def open_room(name: str, *script: bytes, then: Then = Then.KEEP, **timeouts: float) -> None:
            rogues[name] = stack.enter_context(rogue(*script, then=then))
            models[name] = {"backends": [{"url": rogues[name].url}], "timeouts": timeouts}

        for what, (script, then) in BROKEN.items():
            open_room(what, script, then=then)
        for what, (script, then, _) in ODD.items():
            open_room(what, script, then=then)
        for status, kind, body, headers in SAID:
            open_room(f"says {status.decode()}", reply(body, status=status, kind=kind, headers=headers))
        for name, framing in CALLED_EVENTS.items():
            open_room(name, framing)
        open_room("silent", b"", then=Then.HANG, first_byte_s=0.3)
        open_room("half and silent", HALF, then=Then.HANG, between_chunks_s=0.3)
        talk = (stream_head(), *[chunk(b": still here\n\n")] * 200)
        open_room("talks on", *talk, then=Then.HANG, total_s=0.5, between_chunks_s=30)
        open_room("too much", CHUNKED_JSON, *[chunk(b"x" * 60_000)] * 4, chunk(b""))
        open_room("closes after each", GOOD, then=Then.CLOSE)
        open_room("good", GOOD)
        dead = {"url": f"http://127.0.0.1:{free_port()}"}
        models["one dead, one good"] = {"backends": [dead, {"url": rogues["good"].url}]}
        for n in "12":
            open_room(f"half {n}", HALF, then=Then.CLOSE)
        models["two halves"] = {"backends": [{"url": rogues[f"half {n}"].url} for n in "12"]}
        full = stack.enter_context(_full_house())
        models["full house"] = {"backends": [{"url": full}], "timeouts": {"connect_s": 0.3}}
        config = {
            "models": models,
            "limits": {"max_response": "128KiB"},
            # probes find nothing wrong with most of these, and are to have no say over the rest
            "health": {"interval_s": 5, "fall": 100},
        }
        for model in models.values():
            # so many models want more descriptors than a test may have
            model |= {"max_concurrent": 4, "max_queue": 4}
        yield House(stack.enter_context(gateway(config)), rogues)


def post(running: Gateway, body: Any, path: str = PATH) -> httpx.Response:
    return httpx.post(running.url + path, json=body, timeout=60, trust_env=False)


def assert_error(response: httpx.Response, status: int, path: str = PATH) -> dict[str, Any]:
    """The status and the error object of the dialect that `path` speaks; returns the object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.get("type") == ("error" if path.startswith("/v1/messages") else None)
    error: dict[str, Any] = body["error"]
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("what", BROKEN)
def test_a_backend_that_does_not_answer_in_http_is_502(house: House, what: str, path: str) -> None:
    before = house.count(what, 502)
    for stream in (False, True):
        error = assert_error(house.post(what, path=path, stream=stream), 502, path)
        assert house.rogues[what].url.partition("//")[2] not in error["message"]
    wait_until(lambda: house.count(what, 502) == before + 2, 10, "the count")
    assert house.count(what, 200) == 0


@pytest.mark.parametrize("what", ODD)
def test_a_lawful_if_odd_answer_comes_back_whole(house: House, what: str) -> None:
    body = ODD[what][2]
    for _ in range(3):
        response = house.post(what)
        assert response.status_code == 200, response.text
        assert response.content == body
        assert response.headers["content-length"] == str(len(body))
        assert "x-later" not in response.headers


@pytest.mark.parametrize("said", SAID, ids=lambda said: said[0].decode())
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_upstream_says_is_passed_on_with_its_status(
    house: House, said: tuple[bytes, bytes, bytes, bytes], stream: bool
) -> None:
    status, kind, body, headers = said
    response = house.post(f"says {status.decode()}", stream=stream)
    assert response.status_code == int(status[:3])
    assert response.content == body
    assert response.headers["content-type"] == kind.decode()
    if headers:
        assert response.headers["retry-after"] == headers.split(b": ")[1].strip().decode()


@pytest.mark.parametrize("what", CALLED_EVENTS)
def test_an_error_that_calls_itself_an_event_stream_passes_byte_for_byte(house: House, what: str) -> None:
    response = house.post(what, stream=True)
    assert response.status_code == 500
    assert response.headers["content-type"] == "text/event-stream"
    assert response.content == ERROR_EVENT
    assert house.count(what, 500) == 1


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_says_nothing_is_504_and_the_message_says_which_deadline(
    house: House, path: str, stream: bool
) -> None:
    backend, before = house.rogues["silent"], house.count("silent", 504)
    backend.gone.clear()
    error = assert_error(house.post("silent", path=path, stream=stream), 504, path)
    assert "first" in error["message"].lower()
    assert backend.gone.wait(10)
    wait_until(lambda: house.count("silent", 504) == before + 1, 10, "the count")


def test_half_a_body_and_then_silence_is_504(house: House) -> None:
    """It is no stream, so nothing has reached the client: the status can still be true."""
    assert_error(house.post("half and silent"), 504)
    assert house.rogues["half and silent"].gone.wait(10)


def test_a_total_deadline_ends_a_call_that_keeps_talking(house: House) -> None:
    response = house.post("talks on", stream=True)
    assert response.status_code == 200
    assert b'data: {"error"' in response.content
    assert house.rogues["talks on"].gone.wait(30)
    wait_until(lambda: house.count("talks on", 504) == 1, 10, "the count")


def test_a_backend_that_cannot_be_connected_to_in_time_is_504(house: House) -> None:
    error = assert_error(house.post("full house"), 504)
    assert "connect" in error["message"].lower()


def test_a_dead_backend_beside_a_live_one_costs_a_client_nothing(house: House) -> None:
    before = len(house.rogues["good"].received)
    responses = [house.post("one dead, one good") for _ in range(20)]
    assert [response.status_code for response in responses] == [200] * 20
    assert {response.headers["x-penstock-attempts"] for response in responses} <= {"1", "2"}
    assert len(house.rogues["good"].received) == before + 20


def test_a_request_is_not_sent_twice_once_a_byte_of_its_answer_came(house: House) -> None:
    assert_error(house.post("two halves"), 502)
    assert len(house.rogues["half 1"].received) + len(house.rogues["half 2"].received) == 1


def test_a_stale_connection_is_replaced_without_a_word(house: House) -> None:
    """A server that closes each connection after its answer, saying nothing of it beforehand."""
    assert [house.post("closes after each").status_code for _ in range(30)] == [200] * 30
    assert len(house.rogues["closes after each"].received) == 30


def test_an_answer_of_unknown_length_over_the_limit_is_502(house: House) -> None:
    assert_error(house.post("too much"), 502)


def test_a_gateway_of_broken_backends_is_itself_well(house: House) -> None:
    assert httpx.get(house.gateway.url + "/health", trust_env=False).status_code == 200
    assert "Traceback" not in house.gateway.log()


def test_a_port_nobody_listens_on_becomes_503() -> None:
    with gateway(one_model(f"http://127.0.0.1:{free_port()}")) as running:
        response = post(running, chat("m"))
        assert response.status_code in (502, 503)
        verdict = wait_until(
            lambda: found if (found := post(running, chat("m"))).status_code == 503 else None,
            30,
            "the verdict",
        )
        assert verdict is not None
        assert_error(verdict, 503)
        assert int(verdict.headers["retry-after"]) >= 1
        assert httpx.get(running.url + "/ready", trust_env=False).status_code == 503
        assert httpx.get(running.url + "/health", trust_env=False).status_code == 200


def test_a_response_is_looked_for_past_a_backend_that_fails() -> None:
    """Ids that this gateway never saw, as after a restart: a dead backend must not hide what a live one has."""
    dead = f"http://127.0.0.1:{free_port()}"
    with simulator() as one, rogue(reply(b'{"detail":"Not Found"}', status=b"404 Not Found")) as plain:
        made = httpx.post(
            f"{one.url}/v1/responses", json={"model": "m", "input": "x", "store": True}, trust_env=False
        )
        ident = made.json()["id"]
        config = one_model(dead, plain.url, one.url) | {"health": {"fall": 100}}
        with gateway(config) as running:
            for _ in range(3):
                found = httpx.get(f"{running.url}/v1/responses/{ident}", trust_env=False)
                assert found.status_code == 200, found.text
                assert found.json()["id"] == ident
        with gateway(one_model(plain.url, one.url)) as running:
            missing = httpx.get(f"{running.url}/v1/responses/resp_0", trust_env=False)
            assert_error(missing, 404)


def test_a_stored_response_is_asked_of_the_backend_that_has_it() -> None:
    """Whichever worker the question comes to, and however often."""
    with (
        simulator() as one,
        simulator() as two,
        gateway(one_model(one.url, two.url, name="sim-model") | {"workers": {"count": 2}}) as running,
    ):
        ids = []
        for n in range(8):
            body = {"model": "sim-model", "input": f"hello {n}", "store": True}
            made = post(running, body, "/v1/responses")
            assert made.status_code == 200, made.text
            ids.append(made.json()["id"])
        assert len(set(ids)) == 8
        for _ in range(3):
            for ident in ids:
                found = httpx.get(f"{running.url}/v1/responses/{ident}", trust_env=False, timeout=30)
                assert found.status_code == 200, found.text
                assert found.json()["id"] == ident
        for ident in ids:
            again = post(
                running,
                {"model": "sim-model", "input": "and then?", "previous_response_id": ident},
                "/v1/responses",
            )
            assert again.status_code == 200, again.text
            assert httpx.delete(f"{running.url}/v1/responses/{ident}", trust_env=False).status_code == 200
            assert httpx.get(f"{running.url}/v1/responses/{ident}", trust_env=False).status_code == 404
