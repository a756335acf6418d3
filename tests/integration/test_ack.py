"""What the kernel says of real connections: a slow reader, wildcard listeners, and where it cannot tell."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.gateway.ack import Acked, AckMeter
from tests.support.procs import wait_until


@dataclass
class Pair:
    """Both ends of a connection, and the addresses as a server host would report them."""

    server_end: socket.socket
    client_end: socket.socket
    client: str
    server: str

    def send_until_full(self) -> int:
        """Send until the kernel takes no more; how many bytes it took."""
        sent = 0
        try:
            while True:
                sent += self.server_end.send(b"x" * 65536)
        except BlockingIOError:
            return sent

    def read(self, size: int) -> None:
        while size:
            size -= len(self.client_end.recv(min(size, 65536)))


def shown(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def connected(listen_on: str, connect_to: str, connect_from: str | None = None) -> Iterator[Pair]:
    with ExitStack() as stack:
        listener = stack.enter_context(
            socket.socket(socket.AF_INET6 if ":" in listen_on else socket.AF_INET, socket.SOCK_STREAM)
        )
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind((listen_on, 0))
        except OSError as error:
            pytest.skip(f"no such address here: {error}")
        listener.listen()
        family = socket.AF_INET6 if ":" in connect_to else socket.AF_INET
        client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if connect_from is not None:
            client.bind((connect_from, 0))
        client.connect((connect_to, listener.getsockname()[1]))
        server_end, address = listener.accept()
        stack.enter_context(server_end)
        server_end.setblocking(False)
        yield Pair(server_end, client, shown(address), shown(listener.getsockname()))


@pytest.fixture
def meter() -> Iterator[AckMeter]:
    made = AckMeter()
    with connected("127.0.0.1", "127.0.0.1") as pair:
        if made.acked(pair.client, pair.server) is None:
            pytest.skip("this kernel or sandbox does not answer sock_diag")
    made.close()
    made = AckMeter()
    yield made
    made.close()


def asked(meter: AckMeter, pair: Pair) -> Acked:
    answer = meter.acked(pair.client, pair.server)
    assert answer is not None
    return answer


def test_a_slow_reader_acknowledges_only_what_its_kernel_took(meter: AckMeter) -> None:
    with connected("127.0.0.1", "127.0.0.1") as pair:
        start = asked(meter, pair)
        assert start.wqueue == 0
        sent = pair.send_until_full()
        wait_until(lambda: asked(meter, pair).bytes_acked > start.bytes_acked, what="an acknowledgement")
        answer = asked(meter, pair)
        assert answer.wqueue > 0
        assert answer.bytes_acked - start.bytes_acked + answer.wqueue == sent
        stuck = answer.bytes_acked
        # the client reads a part, and then everything
        pair.read(sent // 2)
        wait_until(lambda: asked(meter, pair).bytes_acked > stuck, what="progress")
        pair.read(sent - sent // 2)
        wait_until(
            lambda: asked(meter, pair) == Acked(start.bytes_acked + sent, 0), what="every byte acknowledged"
        )


@pytest.mark.parametrize(
    ("listen_on", "connect_to", "connect_from"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("0.0.0.0", "127.0.0.1", None),
        ("0.0.0.0", "127.0.0.5", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.6", "127.0.0.9"),
        ("::", "127.0.0.1", None),
        ("::", "127.0.0.7", "127.0.0.8"),
        ("::", "::1", None),
        ("::1", "::1", None),
    ],
)
def test_a_connection_is_found_whatever_its_listener_is_bound_to(
    meter: AckMeter, listen_on: str, connect_to: str, connect_from: str | None
) -> None:
    with connected(listen_on, connect_to, connect_from) as pair:
        sent = pair.send_until_full()
        for _ in range(2):
            answer = asked(meter, pair)
            assert 0 < answer.wqueue <= sent


def test_an_address_that_worked_is_tried_for_the_next_client(meter: AckMeter) -> None:
    with connected("0.0.0.0", "127.0.0.5", "127.0.0.9") as first:
        asked(meter, first)
        listed = []
        meter._list = lambda *question: listed.append(question)  # type: ignore[method-assign,assignment]
        port = first.server.rpartition(":")[2]
        with socket.create_connection(("127.0.0.5", int(port)), source_address=("127.0.0.9", 0)) as second:
            assert meter.acked(shown(second.getsockname()), first.server) is not None
        assert not listed


def test_a_listener_is_never_taken_for_a_connection(meter: AckMeter) -> None:
    with connected("0.0.0.0", "127.0.0.1") as pair:
        assert meter.acked("127.0.0.1:1", pair.server) is None
        # and the line is still good
        asked(meter, pair)


def test_a_connection_that_ended_has_no_numbers(meter: AckMeter) -> None:
    with connected("127.0.0.1", "127.0.0.1") as pair:
        asked(meter, pair)
        client, server = pair.client, pair.server
        pair.server_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: meter.acked(client, server) is None, what="the end of the connection")
    meter.forget(client, server)
    meter.forget(client, server)


def test_fruitless_listings_come_to_an_end_and_a_find_allows_them_again(meter: AckMeter) -> None:
    listed = []
    meter._list = lambda *question: listed.append(question)  # type: ignore[method-assign,assignment]
    for port in range(1, 100):
        assert meter.acked(f"127.0.0.1:{port}", "0.0.0.0:9") is None
    assert len(listed) < 50
    before = len(listed)
    with connected("0.0.0.0", "127.0.0.1") as pair:
        asked(meter, pair)
    meter.acked("127.0.0.1:1", "0.0.0.0:9")
    assert len(listed) == before + 1


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("", ""),
        ("unix:/run/s", "unix:/run/s"),
        ("127.0.0.1", "127.0.0.1:80"),
        ("127.0.0.1:0", "127.0.0.1:80"),
        ("127.0.0.1:99999", "127.0.0.1:80"),
        ("127.0.0.1:5", "nowhere:80"),
        ("[::1]:5", "127.0.0.1:80"),
        ("127.0.0.1:5", "[::1]:80"),
    ],
)
def test_what_is_no_pair_of_addresses_has_no_numbers(meter: AckMeter, client: str, server: str) -> None:
    assert meter.acked(client, server) is None


def test_a_unix_socket_has_no_numbers(meter: AckMeter, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert meter.acked("", str(tmp_path / "s")) is None


def test_where_netlink_is_denied_it_is_asked_for_once() -> None:
    asked_for = 0

    def refused() -> socket.socket:
        nonlocal asked_for
        asked_for += 1
        raise PermissionError(1, "no netlink here")

    meter = AckMeter(refused)
    for _ in range(3):
        assert meter.acked("127.0.0.1:5", "127.0.0.1:80") is None
    assert asked_for == 1


def test_out_of_descriptors_is_not_for_ever() -> None:
    def short() -> socket.socket:
        raise OSError(24, "too many open files")

    with connected("127.0.0.1", "127.0.0.1") as pair:
        probe = AckMeter()
        if probe.acked(pair.client, pair.server) is None:
            pytest.skip("this kernel or sandbox does not answer sock_diag")
        probe.close()
        meter = AckMeter(short)
        assert meter.acked(pair.client, pair.server) is None
        meter._open_line = probe._open_line
        assert meter.acked(pair.client, pair.server) is not None
        meter.close()
