"""Odd clients: each ends with a response or a closed connection, and leaves nothing counted."""

import socket
import struct
from collections.abc import Iterator

import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from .listener import CHAT, Plain, chat_request, wait_quiet

HEALTH = b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n"
CLOSING = HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
HTTP = ["1", "auto"]


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model="m") as running:
        yield running


@pytest.fixture(scope="module", params=HTTP)
def gate(request: pytest.FixtureRequest, sim: Simulator) -> Iterator[Gateway]:
    listen = {"http": request.param, "body_timeout_s": 20}
    with gateway({**one_model(sim.url), "listen": listen}) as running:
        yield running


@pytest.fixture(autouse=True)
def _quiet_afterwards(gate: Gateway, sim: Simulator) -> Iterator[None]:
    sim.reset()
    yield
    sim.reset()
    wait_quiet(gate, sim)
    with Plain(gate.port) as link:
        assert b"200 OK" in link.send(CLOSING).read_all()[0]


def _by_byte(link: Plain, data: bytes) -> None:
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(data)):
        link.send(data[at : at + 1])


def _abort(link: Plain) -> None:
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.socket.close()


def test_a_request_a_byte_at_a_time_is_answered(gate: Gateway) -> None:
    with Plain(gate.port) as link:
        _by_byte(link, chat_request())
        assert b"200 OK" in link.until(b"chat.completion")
        _by_byte(link, chat_request(stream=True))
        assert b"[DONE]" in link.until(b"0\r\n\r\n")


@pytest.mark.parametrize("count", [2, 50])
def test_pipelined_requests_are_answered_in_order(gate: Gateway, count: int) -> None:
    with Plain(gate.port) as link:
        link.send(chat_request() * count + chat_request(stream=True) + CLOSING)
        got, _ = link.read_all()
    assert got.count(b"HTTP/1.1 200 OK") == count + 2
    assert got.rindex(b'"chat.completion"') < got.index(b"data: [DONE]") < got.index(b'{"status":"ok"}')


@pytest.mark.parametrize("part", [10, 60, -5], ids=["in the line", "in the head", "in the body"])
@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_a_connection_that_ends_in_the_middle_of_a_request_holds_nothing(
    gate: Gateway, part: int, how: str
) -> None:
    with Plain(gate.port) as link:
        link.send(chat_request()[:part])
        if how == "reset":
            _abort(link)
        elif how == "half closed":
            link.socket.shutdown(socket.SHUT_WR)
            got, _ = link.read_all()
            assert not got or got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 408"))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_a_client_that_ends_its_connection_while_it_is_answered_ends_the_call(
    gate: Gateway, sim: Simulator, how: str, stream: bool
) -> None:
    sim.faults({"kind": "hang", "stage": "stream" if stream else "headers"})
    aborted = sim.stats()["aborted"]
    with Plain(gate.port) as link:
        link.send(chat_request(stream=stream))
        wait_until(lambda: sim.stats()["in_flight"] == 1, what="the call upstream")
        if how == "reset":
            _abort(link)
        elif how == "half closed":
            link.socket.shutdown(socket.SHUT_WR)
        else:
            link.socket.close()
        wait_until(lambda: sim.stats()["aborted"] > aborted, what="the end of the call")


def test_expect_100_continue_is_met_before_the_body_is_sent(gate: Gateway) -> None:
    head, _, body = chat_request().partition(b"\r\n\r\n")
    with Plain(gate.port) as link:
        link.send(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert link.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert b"200 OK" in link.send(body).until(b"chat.completion")


def test_a_body_that_is_too_large_is_refused_before_it_is_asked_for(gate: Gateway) -> None:
    with Plain(gate.port) as link:
        link.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999999\r\nexpect: 100-continue\r\n\r\n"
        )
        assert link.until(b"body_too_large").startswith(b"HTTP/1.1 413 ")


def test_a_target_in_absolute_form_is_served_by_its_path(gate: Gateway) -> None:
    with Plain(gate.port) as link:
        target = f"http://some.where:80{CHAT}?a=b"
        link.send(chat_request().replace(CHAT.encode(), target.encode(), 1))
        assert b"200 OK" in link.until(b"chat.completion")


@pytest.mark.parametrize(
    "target", ["*", "some.where:443", "/", "//", "/%00", "/v1/%2e%2e/health", "/health#x"]
)
@pytest.mark.parametrize("method", ["OPTIONS", "CONNECT", "GET", "POST", "BREW"])
def test_no_target_gets_more_than_a_refusal_or_a_closed_connection(
    gate: Gateway, method: str, target: str
) -> None:
    with Plain(gate.port) as link:
        link.send(f"{method} {target} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n".encode())
        got, _ = link.read_all()
        assert not got or got.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200 OK"))
        if got.startswith(b"HTTP/1.1 200 OK"):
            assert b'{"status":"ok"}' in got


def test_http_1_0_is_answered_and_closed(gate: Gateway) -> None:
    for stream, end in ((False, b"}"), (True, b"data: [DONE]\n\n")):
        with Plain(gate.port) as link:
            link.send(chat_request(stream=stream).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
            got, reset = link.read_all()
            assert got.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
            assert b"transfer-encoding" not in got.partition(b"\r\n\r\n")[0].lower()
            assert got.endswith(end)
            assert not reset
    with Plain(gate.port) as link:
        link.send(b"GET /health HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        link.until(b'{"status":"ok"}')


@pytest.mark.parametrize("size", [16_000, 64_000, 300_000])
def test_large_headers_are_taken_and_larger_ones_refused(gate: Gateway, size: int) -> None:
    with Plain(gate.port) as link:
        link.send(chat_request().replace(b"\r\n\r\n", b"\r\nx-large: " + b"a" * size + b"\r\n\r\n", 1))
        got = link.until(b"\r\n\r\n")
        # 400 is the backend's word for what it does not take
        assert got.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), got[:200]
        if size < 20_000:
            assert got.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("data", [b"x" * 1_000_000, b"GET /" + b"a" * 1_000_000, b"a: b\r\n" * 200_000])
def test_a_flood_that_is_no_request_is_refused_or_closed(gate: Gateway, data: bytes) -> None:
    with Plain(gate.port) as link:
        try:
            link.send(data)
            got, _ = link.read_all()
        except OSError:
            return
        assert not got or got.startswith(b"HTTP/1.1 4")


def test_hundreds_of_headers_are_refused_or_forwarded(gate: Gateway) -> None:
    for count in (90, 5000):
        fields = b"".join(b"x-%d: a\r\n" % n for n in range(count))
        with Plain(gate.port) as link:
            link.send(chat_request().replace(b"\r\n", b"\r\n" + fields, 1))
            got = link.until(b"\r\n\r\n")
            assert got.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 431 ")), (count, got[:200])


def test_both_a_length_and_chunks_are_never_two_requests(gate: Gateway) -> None:
    """The shape of request smuggling (RFC 9112 §6.1): what follows the body must not be served."""
    inner = HEALTH
    with Plain(gate.port) as link:
        link.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n%b" % (5 + len(inner), inner)
        )
        link.socket.shutdown(socket.SHUT_WR)
        got, _ = link.read_all()
        assert b'{"status":"ok"}' not in got
