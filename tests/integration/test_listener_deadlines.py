"""What a client may leave undone, and for how long: heads that do not come, idle connections, answers not read."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import msgspec
import pytest

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from .listener import H2, MIB, Plain, chat, chat_request, wait_quiet

HEALTH = b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n"
Serving = Callable[..., AbstractContextManager[Gateway]]
HTTP = pytest.mark.parametrize("http", ["1", "auto"])


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model="m") as running:
        yield running


@pytest.fixture(scope="module")
def serving(sim: Simulator) -> Iterator[Serving]:
    """A gateway that listens so; the same one for all tests that want the same."""
    with ExitStack() as stack:
        made: dict[str, Gateway] = {}

        def of(**listen: Any) -> AbstractContextManager[Gateway]:
            key = repr(listen)
            if key not in made:
                made[key] = stack.enter_context(gateway({**one_model(sim.url), "listen": listen}))
            return nullcontext(made[key])

        yield of


def idle(gate: Gateway) -> Plain:
    """A connection that has been answered once."""
    link = Plain(gate.port)
    assert b'{"status":"ok"}' in link.send(HEALTH).until(b"}")
    return link


@HTTP
def test_a_head_that_does_not_come_is_waited_for_for_read_timeout_s_and_an_idle_client_for_longer(
    serving: Serving, http: str
) -> None:
    with ExitStack() as stack:
        gate = stack.enter_context(serving(http=http, read_timeout_s=1, keep_alive_s=600))
        waiting = stack.enter_context(idle(gate))
        begun = [b"", b"G", b"GET /health HTTP/1.1\r\nhost: t\r\nx-half: "]
        if http == "auto":
            begun.append(b"PRI * HTTP/2")
        links = [stack.enter_context(Plain(gate.port)).send(data) for data in begun]
        for link in links:
            assert link.read_all()[0] == b""
        assert waiting.is_open()
        assert b"200 OK" in waiting.send(HEALTH).until(b"}")


@HTTP
def test_a_head_that_comes_a_byte_at_a_time_has_no_longer(
    sim: Simulator, serving: Serving, http: str
) -> None:
    with serving(http=http, read_timeout_s=1, keep_alive_s=600) as gate, Plain(gate.port) as link:
        link.send(b"GET /health HTTP/1.1\r\nhost: t\r\nx-slow: ")

        def ended() -> bool:
            if link.is_open():
                link.send(b"a")
                return False
            return True

        try:
            wait_until(ended, what="the end of the connection")
        except OSError:
            return  # it ended while a byte was on its way
        wait_quiet(gate, sim)


@HTTP
def test_a_second_head_that_does_not_come_is_no_idle_connection(serving: Serving, http: str) -> None:
    with serving(http=http, read_timeout_s=1, keep_alive_s=600) as gate, idle(gate) as link:
        gate.metrics()  # something that takes longer than the kernel's clock
        assert link.send(b"GET /health HT").read_all()[0] == b""


@HTTP
def test_an_idle_connection_is_closed_after_keep_alive_s(serving: Serving, http: str) -> None:
    with (
        serving(http=http, read_timeout_s=600, keep_alive_s=1) as gate,
        idle(gate) as link,
    ):
        assert link.read_all() == (b"", False)


def test_an_idle_http_2_connection_is_closed_after_keep_alive_s_and_not_after_read_timeout_s(
    serving: Serving,
) -> None:
    with serving(http="auto", read_timeout_s=0.5, keep_alive_s=600) as gate, Plain(gate.port) as link:
        client = H2(link)
        client.finish(client.request(path="/health"))
        for _ in range(2):  # each of these lives for as long as the other would
            with Plain(gate.port) as silent:
                assert silent.read_all()[0] == b""
        client.finish(client.request(path="/health"))
    with serving(http="auto", read_timeout_s=600, keep_alive_s=0.5) as gate, Plain(gate.port) as link:
        client = H2(link)
        client.finish(client.request(path="/health"))
        while client.turn():
            pass


@HTTP
def test_no_deadline_of_the_connection_ends_a_request_that_waits(
    sim: Simulator, serving: Serving, http: str
) -> None:
    sim.reset()
    sim.faults({"kind": "hang", "stage": "headers"})
    with (
        serving(http=http, read_timeout_s=0.5, keep_alive_s=0.5, write_timeout_s=0.5) as gate,
        Plain(gate.port) as one,
        Plain(gate.port) as two,
    ):
        one.send(chat_request())
        two.send(chat_request(stream=True))
        for _ in range(3):  # each of these lives for as long as the others would
            with Plain(gate.port) as silent:
                assert silent.read_all()[0] == b""
        sim.reset()
        assert b"200 OK" in one.until(b"chat.completion")
        assert b"[DONE]" in two.until(b"[DONE]")
        wait_quiet(gate, sim)


def test_a_plain_answer_that_is_not_read_holds_nothing_after_write_timeout_s(
    sim: Simulator, serving: Serving
) -> None:
    sim.reset()
    sim.faults({"kind": "oversized", "bytes": 24 * MIB, "chunked": True})
    with (
        serving(write_timeout_s=1) as gate,
        Plain(gate.port, receive_buffer=64 << 10) as link,
    ):
        link.send(chat_request())
        wait_until(lambda: gate.metric("penstock_requests_total", status="499") >= 1, what="it is given up")
        wait_until(lambda: not _connected(gate), what="the connection is closed")
        got, _ = link.read_all()
        announced = re.search(rb"content-length: (\d+)", got)
        assert announced, "only a length lets a client see that the end came early"
        assert int(announced[1]) >= 24 * MIB > len(got)
        wait_quiet(gate, sim)


def test_a_stream_that_is_not_read_is_reset_and_never_seems_whole(sim: Simulator, serving: Serving) -> None:
    sim.reset()
    sim.faults({"kind": "oversized", "bytes": 400 * MIB})
    aborted = sim.stats()["aborted"]
    with (
        serving(write_timeout_s=1) as gate,
        Plain(gate.port, receive_buffer=64 << 10) as link,
    ):
        link.send(chat_request(stream=True))
        wait_until(lambda: sim.stats()["aborted"] > aborted, what="the upstream is closed")
        wait_until(lambda: not _connected(gate), what="the connection is gone")
        got, reset = link.read_all()
        assert reset
        assert not got.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in got
        wait_quiet(gate, sim)


def test_a_stream_that_is_not_read_says_so_where_the_host_ends_the_connection_itself(
    sim: Simulator, serving: Serving
) -> None:
    sim.reset()
    sim.faults({"kind": "oversized", "bytes": 400 * MIB})
    aborted = sim.stats()["aborted"]
    request = chat_request(stream=True).replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    with serving(write_timeout_s=1) as gate, Plain(gate.port, receive_buffer=64 << 10) as link:
        link.send(request)
        wait_until(lambda: sim.stats()["aborted"] > aborted, what="the upstream is closed")
        got, reset = link.read_all()
        assert reset or b'"code":"client_stalled"' in got
        assert b"[DONE]" not in got
        wait_quiet(gate, sim)


def test_a_body_that_does_not_come_is_408_and_holds_nothing(sim: Simulator, serving: Serving) -> None:
    body = msgspec.json.encode(chat())
    with serving(body_timeout_s=1) as gate, Plain(gate.port) as link:
        link.send(chat_request()[: -len(body) // 2])
        assert b"HTTP/1.1 408 " in link.until(b"body_timeout")
        wait_quiet(gate, sim)


def test_a_large_body_that_trickles_has_read_timeout_s_in_all(sim: Simulator, serving: Serving) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
    with serving(body_timeout_s=600, read_timeout_s=1.5) as gate, Plain(gate.port) as link:
        link.send(head + b"content-length: 1000000\r\n\r\n{")

        def answered() -> bool:
            link.socket.setblocking(False)
            try:
                return bool(link.socket.recv(12) == b"HTTP/1.1 408")
            except BlockingIOError:
                link.socket.settimeout(5)
                link.send(b" ")
                return False

        wait_until(answered, what="408")
        wait_quiet(gate, sim)


def _connected(gate: Gateway) -> bool:
    port = f":{gate.port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return any(row[1].endswith(port) and row[3] in ("01", "04", "05", "08") for row in rows)
