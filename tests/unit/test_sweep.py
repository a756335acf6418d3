"""Which connections a sweep closes, on real sockets; how long they have been quiet is the kernel's word."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest

from penstock.gateway.config.structs import Listen
from penstock.gateway.sweep import MAX_INTERVAL_S, SLICE, Sweep

from ..support.procs import wait_until

AT_ONCE = Listen(read_timeout_s=0.02, keep_alive_s=0.02, write_timeout_s=0.02)
NEVER = Listen(read_timeout_s=600, keep_alive_s=600, write_timeout_s=600)


class Port:
    """A listening port with connections; `busy` are clients with a request in flight."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.number: int = self._listener.getsockname()[1]
        self.busy: list[str] = []
        self.sweep = Sweep(self.number, lambda: self.busy)
        self._open: list[socket.socket] = [self._listener]
        self._now = time.monotonic()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The client's end and the server's."""
        client = socket.create_connection(("127.0.0.1", self.number))
        server, _ = self._listener.accept()
        client.settimeout(10)
        self._open += [client, server]
        return client, server

    def look(self, listen: Listen) -> None:
        """One whole look at all connections."""
        self._now += 2 * MAX_INTERVAL_S
        self.sweep.tick(self._now, listen)
        while self.sweep.looking:
            self.sweep.tick(self._now, listen)

    def close(self) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


def name(client: socket.socket) -> str:
    host, number = client.getsockname()
    return f"{host}:{number}"


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def closed_at_last(port: Port, client: socket.socket) -> None:
    def look() -> bool:
        port.look(AT_ONCE)
        return is_closed(client)

    wait_until(look, 10, "the end of the connection")


def _ends_in_a_reset(client: socket.socket) -> bool:
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_what_is_not_overdue_stays(port: Port) -> None:
    client, _ = port.connect()
    for _ in range(5):
        port.look(NEVER)
    assert not is_closed(client)


def test_a_verdict_is_carried_out_at_the_second_look(port: Port) -> None:
    client, server = port.connect()
    server.sendall(b"x")
    wait_until(lambda: client.recv(1) == b"x")
    threshold = time.monotonic() + 0.05
    wait_until(lambda: time.monotonic() > threshold)
    port.look(AT_ONCE)
    assert not is_closed(client)
    port.look(AT_ONCE)
    assert is_closed(client)


def test_a_connection_with_a_request_in_flight_stays(port: Port) -> None:
    client, server = port.connect()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    port.busy.append(name(client))
    sentinel, _ = port.connect()
    closed_at_last(port, sentinel)
    for _ in range(5):
        port.look(AT_ONCE)
    assert not is_closed(client)
    assert server.recv(3) == b"GET"
    port.busy.clear()
    closed_at_last(port, client)


def test_half_a_head_is_closed_though_it_goes_on_coming(port: Port) -> None:
    client, _ = port.connect()
    listen = Listen(read_timeout_s=0.05, keep_alive_s=600)

    def look() -> bool:
        port.look(listen)
        if is_closed(client):
            return True
        client.send(b"a")
        return False

    wait_until(look, 10, "the end of the connection")


def test_a_client_of_http_2_may_have_spoken_last(port: Port) -> None:
    client, server = port.connect()
    port.sweep.speaks_h2(name(client))
    client.sendall(b"settings")
    assert server.recv(100) == b"settings"
    sentinel, _ = port.connect()
    listen = Listen(read_timeout_s=0.02, keep_alive_s=600)

    def look() -> bool:
        port.look(listen)
        return is_closed(sentinel)

    wait_until(look, 10, "the end of the other connection")
    assert not is_closed(client)


def test_an_answer_that_is_not_read_is_reset(port: Port) -> None:
    client, server = port.connect()
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while server.send(b"x" * 65536):
            pass
    listen = Listen(read_timeout_s=600, keep_alive_s=600, write_timeout_s=0.02)

    def gone() -> bool:
        port.look(listen)
        try:
            server.send(b"")
            server.getpeername()
        except OSError:
            return True
        return False

    wait_until(gone, 10, "the end of the connection")
    server.close()
    assert _ends_in_a_reset(client)


def test_a_condemned_connection_is_closed_at_the_next_tick_even_if_it_is_busy(port: Port) -> None:
    client, server = port.connect()
    other, _ = port.connect()
    port.look(NEVER)
    port.busy.append(name(client))
    port.sweep.condemn(name(client))
    port.sweep.tick(time.monotonic(), NEVER)
    server.close()
    wait_until(lambda: is_closed(client), 10, "the end of the connection")
    assert not is_closed(other)


def test_a_connection_that_is_condemned_while_a_look_goes_on_is_closed_by_the_next(port: Port) -> None:
    client, _ = port.connect()
    spare = [os.dup(0) for _ in range(SLICE)]  # so that a look takes more than one tick
    try:
        port.sweep.tick(1.0, NEVER)
        assert port.sweep.looking
        port.sweep.condemn(name(client))
        for _ in range(2):
            port.look(NEVER)
    finally:
        for fd in spare:
            os.close(fd)
    assert is_closed(client)


def test_other_sockets_of_the_process_are_left_alone_and_no_descriptor_is_lost(port: Port) -> None:
    one, two = socket.socketpair()
    with one, two, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        outgoing = socket.create_connection(elsewhere.getsockname())
        incoming, _ = elsewhere.accept()
        with outgoing, incoming:
            sentinel, _ = port.connect()
            closed_at_last(port, sentinel)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                port.look(AT_ONCE)
            assert len(os.listdir("/proc/self/fd")) == before
            one.send(b"x")
            outgoing.send(b"x")
            assert (two.recv(1), incoming.recv(1)) == (b"x", b"x")
    late, _ = port.connect()  # the listener too
    assert not is_closed(late)
