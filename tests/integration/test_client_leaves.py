"""A client that leaves, at whatever stage, leaves nothing behind: no count, no task, no connection to a backend."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from ..support.dataplane import DataPlane, data_plane
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.wire import Wire, ask, request
from ..unit.requests import SMALLEST

CHAT = SMALLEST["/v1/chat/completions"]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n"
SAYS = {
    # the backend has the request and says nothing
    "sent": b"",
    "in the head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "headers": HEAD % (b"application/json", b"content-length: 100\r\n"),
    "headers of a stream": HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n"),
    "mid-body, whole in the end": HEAD % (b"application/json", b"content-length: 100\r\n") + b"x" * 50,
    "mid-body, relayed": HEAD % (b"application/json", b"content-length: 200000\r\n") + b"x" * 100_000,
    "mid-body, chunked": HEAD % (b"application/json", b"transfer-encoding: chunked\r\n") + b"5\r\nabcde\r\n",
    "mid-body, until it closes": HEAD % (b"application/json", b"connection: close\r\n") + b"abcde",
    "streaming": HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n") + b"a\r\ndata: {}\n\n\r\n",
}


class Stuck:
    """A backend that answers every request with `says` and then waits for its client to close."""

    def __init__(self, says: bytes) -> None:
        self._says = says
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.taken = 0
        self.closed = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        try:
            while b"messages" not in data:
                data += connection.recv(65536)
            connection.sendall(self._says)
            self.taken += 1
            while connection.recv(65536):
                pass
        except OSError:
            pass
        self.closed += 1

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


@contextmanager
def stuck(says: bytes) -> Iterator[Stuck]:
    backend = Stuck(says)
    try:
        yield backend
    finally:
        backend.close()


def config(url: str, **model: Any) -> dict[str, Any]:
    return {"listen": {"host": "127.0.0.1"}, "models": {"m": {"backends": [{"url": url}], **model}}}


def chat(**fields: Any) -> bytes:
    return request(body=msgspec.json.encode({"model": "m", **CHAT, **fields}))


def leave(wire: Wire, how: str) -> None:
    if how == "rst":
        wire.reset()
    else:
        wire.socket.close()


WAYS = ["fin", "rst"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("stage", SAYS)
def test_a_client_that_leaves_closes_its_upstream_and_leaves_nothing_behind(stage: str, how: str) -> None:
    with stuck(SAYS[stage]) as backend, data_plane(config(backend.url)) as plane:
        wire = Wire(plane.port).send(chat())
        wait_until(lambda: backend.taken, what="the backend has the request")
        plane.wait_for(requests=1, running=1, inflight=1, calls=1)
        if stage in ("streaming", "mid-body, relayed"):
            assert wire.read(1), "the answer has begun"
        leave(wire, how)
        wait_until(lambda: backend.closed, what="the upstream connection is closed")
        plane.wait_settled()
        assert plane.statuses() == {"499": 1}
        assert plane.call(lambda: plane.worker.fleet.backends[0].pool.idle) == 0


@pytest.mark.parametrize("how", WAYS)
def test_a_client_that_leaves_while_its_body_comes_leaves_nothing_behind(how: str) -> None:
    with stuck(b"") as backend, data_plane(config(backend.url)) as plane:
        for size in (50, 500_000):
            wire = Wire(plane.port).send(request(body=b"{", headers={"content-length": str(size)}))
            plane.wait_for(requests=1)
            leave(wire, how)
            plane.wait_settled()
        assert backend.taken == 0


@pytest.mark.parametrize("how", WAYS)
def test_a_client_that_leaves_the_queue_leaves_its_place_to_the_next(how: str) -> None:
    with stuck(b"") as backend, data_plane(config(backend.url, max_concurrent=1)) as plane:
        first, second, third = (Wire(plane.port) for _ in range(3))
        first.send(chat())
        plane.wait_for(running=1, calls=1)
        second.send(chat())
        plane.wait_for(queued=1, waiting=1)
        third.send(chat())
        plane.wait_for(queued=2, waiting=2)
        leave(second, how)
        plane.wait_for(queued=1, waiting=1, running=1, requests=2)
        leave(first, how)
        plane.wait_for(queued=0, waiting=0, running=1, requests=1)
        wait_until(lambda: backend.taken == 2, what="the third has its turn")
        leave(third, how)
        plane.wait_settled()
        assert backend.taken == 2
        assert plane.statuses() == {"499": 3}


@contextmanager
def unreachable() -> Iterator[str]:
    """The URL of a listener whose backlog is full: a connection to it is neither accepted nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        filling = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            filling.append(filler)
        try:
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for filler in filling:
                filler.close()


@pytest.mark.parametrize("how", WAYS)
def test_a_client_that_leaves_while_we_connect_leaves_nothing_behind(how: str) -> None:
    with unreachable() as url, data_plane(config(url)) as plane:
        wire = Wire(plane.port).send(chat())
        plane.wait_for(requests=1, calls=1, inflight=1)
        leave(wire, how)
        plane.wait_settled()
        assert plane.statuses() == {"499": 1}


def test_a_connect_deadline_is_504_and_says_so() -> None:
    with (
        unreachable() as url,
        data_plane(config(url, timeouts={"connect_s": 0.2})) as plane,
        Wire(plane.port) as w,
    ):
        reply = w.send(chat()).reply()
        assert reply is not None
        assert (reply.status, reply.code) == (504, "connect_timeout")


def test_a_place_in_the_queue_has_a_deadline() -> None:
    with (
        stuck(b"") as backend,
        data_plane(config(backend.url, max_concurrent=1, queue_timeout_s=0.2)) as plane,
        Wire(plane.port) as first,
    ):
        first.send(chat())
        plane.wait_for(running=1)
        with Wire(plane.port) as second:
            reply = second.send(chat()).reply()
            assert reply is not None
            assert (reply.status, reply.code) == (504, "queue_timeout")


def test_a_full_queue_is_429_at_once_with_its_depth() -> None:
    with stuck(b"") as backend, data_plane(config(backend.url, max_concurrent=1, max_queue=2)) as plane:
        wires = [Wire(plane.port).send(chat()) for _ in range(3)]
        plane.wait_for(running=1, queued=2)
        reply = ask_raw(plane)
        assert (reply.status, reply.code) == (429, "queue_full")
        assert reply.header("x-queue-depth") == "2"
        assert reply.header("retry-after")
        assert reply.header("retry-after-ms")
        for wire in wires:
            wire.socket.close()


def ask_raw(plane: DataPlane) -> Any:
    return ask(plane.port, body=msgspec.json.encode({"model": "m", **CHAT}))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("stage", ["headers", "stream"])
def test_a_simulated_server_sees_that_its_client_left(stage: str, stream: bool) -> None:
    with simulator() as sim, data_plane(config(sim.url)) as plane:
        sim.faults({"kind": "hang", "stage": stage, "path": "/v1/*"})
        wires = [Wire(plane.port).send(chat(stream=stream, max_tokens=64)) for _ in range(8)]
        wait_until(lambda: sim.stats()["in_flight"] == 8, what="all at the server")
        for number, wire in enumerate(wires):
            leave(wire, WAYS[number % 2])
        wait_until(lambda: sim.stats()["aborted"] == 8, what="the server has seen all leave")
        assert sim.stats()["in_flight"] == 0
        plane.wait_settled()


def test_clients_that_come_and_go_at_any_moment_leave_nothing_behind() -> None:
    """Half of these leave at once, at moments that only the scheduler knows."""
    with simulator(decode_ms=1) as sim, data_plane(config(sim.url, max_concurrent=4)) as plane:
        bodies = [chat(stream=bool(n % 3), max_tokens=1 + n % 7) for n in range(60)]
        stay = []
        for number, body in enumerate(bodies):
            wire = Wire(plane.port).send(body)
            if number % 2:
                leave(wire, WAYS[number // 2 % 2])
            else:
                stay.append(wire)
        for wire in stay:
            reply = wire.reply()
            assert reply is not None
            assert (reply.status, reply.complete) == (200, True)
            wire.socket.close()
        plane.wait_settled()
        wait_until(lambda: sim.stats()["in_flight"] == 0, what="nothing left at the server")
        statuses = plane.statuses()
        assert statuses["200"] >= len(stay)
        assert set(statuses) <= {"200", "499", "400"}  # 400: a reset took the end of its request along


def test_the_drains_cut_ends_streams_by_an_error_frame_and_waiters_by_503(sim_streaming: Simulator) -> None:
    with (
        data_plane(config(sim_streaming.url, max_concurrent=1)) as plane,
        Wire(plane.port) as streaming,
        Wire(plane.port) as waiting,
    ):
        streaming.send(chat(stream=True, max_tokens=64))
        plane.wait_for(running=1, calls=1)
        first = streaming.read()
        assert first.startswith(b"HTTP/1.1 200")
        waiting.send(chat())
        plane.wait_for(queued=1)
        plane.call(plane.worker.cut)
        refused = waiting.reply()
        assert refused is not None
        assert (refused.status, refused.code) == (503, "draining")
        rest = first
        while not rest.endswith(b"0\r\n\r\n"):
            piece = streaming.read()
            assert piece, "the body ends cleanly behind its error frame"
            rest += piece
        assert b'"code":"draining"' in rest
        assert b"[DONE]" not in rest


@pytest.fixture
def sim_streaming() -> Iterator[Simulator]:
    with simulator() as sim:
        sim.faults({"kind": "hang", "stage": "stream", "after": 2})
        yield sim
