"""What the node holds of bodies and answers is counted as it arrives, bounded, and given back on every path."""

import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest

from penstock.gateway.gathered import Gathered

from ..support.dataplane import DataPlane, data_plane
from ..support.sim import Simulator, simulator
from ..support.wire import WATCHDOG_S, Wire, ask, request
from ..unit.requests import SMALLEST

MIB = 1 << 20
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
LIMITS = {"max_buffered": "12MiB", "max_response": "12MiB"}


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def chat(user: str = "hi") -> bytes:
    return msgspec.json.encode({"model": "m", **SMALLEST["/v1/chat/completions"], "user": user})


def chunk(size: int) -> bytes:
    return b"%x\r\n" % size + b"a" * size + b"\r\n"


class Backend:
    """A backend whose every connection is played by the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listener.settimeout(WATCHDOG_S)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def answer(self, *parts: bytes) -> socket.socket:
        """Accept a connection, read its request, begin the answer."""
        link = self._stack.enter_context(self._listener.accept()[0])
        link.settimeout(WATCHDOG_S)
        link.recv(65536)
        link.sendall(HEAD + b"".join(parts))
        return link


def in_background(link: socket.socket, data: bytes) -> "Future[None]":
    """Send what nobody may want to read yet."""
    done: Future[None] = Future()

    def send() -> None:
        try:
            link.sendall(data)
            done.set_result(None)
        except OSError as error:
            done.set_exception(error)

    threading.Thread(target=send, daemon=True).start()
    return done


@contextmanager
def played(**listen: Any) -> Iterator[tuple[DataPlane, Backend, ExitStack]]:
    with ExitStack() as stack:
        backend = Backend(stack)
        config = {"listen": listen, "limits": LIMITS, "models": {"m": {"backends": [{"url": backend.url}]}}}
        with data_plane(config) as plane, ExitStack() as clients:
            yield plane, backend, clients


def asking(plane: DataPlane, clients: ExitStack, receive_buffer: int | None = None) -> Wire:
    wire = clients.enter_context(Wire(plane.port, receive_buffer=receive_buffer))
    return wire.send(request(body=chat()))


def kept() -> list[int]:
    """The sizes of answers that are in memory still."""
    found = [one for one in gc.get_objects() if isinstance(one, Gathered)]
    cutting = [getattr(one._pieces, "gi_frame", None) for one in found]
    return [len(frame.f_locals["body"]) for frame in cutting if frame is not None]


# ---- requests


def test_bodies_that_are_only_announced_keep_nobody_out(sim: Simulator) -> None:
    config = {"listen": {}, "limits": LIMITS, "models": {"m": {"backends": [{"url": sim.url}]}}}
    with data_plane(config) as plane, ExitStack() as idle:
        for length in ({"transfer-encoding": "chunked"}, {"content-length": str(9 * MIB)}) * 10:
            head = request(headers=length)
            if "transfer-encoding" in length:
                head = head.replace(b"content-length: 0\r\n", b"")
            idle.enter_context(Wire(plane.port)).send(head)
        plane.wait_for(requests=20)
        assert plane.state()["held"] == 0
        assert ask(plane.port, body=chat("x" * MIB)).status == 200


def test_a_body_is_counted_as_it_comes_and_refused_where_it_passes_the_limit(sim: Simulator) -> None:
    config = {"listen": {}, "limits": LIMITS, "models": {"m": {"backends": [{"url": sim.url}]}}}
    head = request(headers={"transfer-encoding": "chunked"}).replace(b"content-length: 0\r\n", b"")
    with data_plane(config) as plane, Wire(plane.port) as first, Wire(plane.port) as second:
        first.send(head + chunk(8 * MIB))
        plane.wait_for(held=8 * MIB)
        second.send(head + chunk(3 * MIB))
        plane.wait_for(held=11 * MIB)
        reply = second.send(chunk(2 * MIB)).reply()
        assert reply is not None
        assert (reply.status, reply.code) == (429, "buffers_full")
        plane.wait_for(held=8 * MIB)
        first.reset()
        plane.wait_for(held=0)


# ---- answers


def test_an_answer_that_is_gathered_is_counted_until_it_is_sent() -> None:
    with played() as (plane, backend, clients):
        wire = asking(plane, clients)
        link = backend.answer(chunk(MIB))
        plane.wait_for(held=MIB)
        link.sendall(LAST)
        reply = wire.reply()
        assert reply is not None
        assert (reply.status, len(reply.body)) == (200, MIB)
        plane.wait_for(held=0)


@pytest.mark.parametrize("how", ["client", "backend", "too large", "shutdown"])
def test_an_answer_that_is_not_gathered_to_its_end_is_given_back(how: str) -> None:
    with played() as (plane, backend, clients):
        wire = asking(plane, clients)
        link = backend.answer(chunk(MIB))
        plane.wait_for(held=MIB)
        if how == "client":
            wire.reset()
        elif how == "backend":
            link.close()
        elif how == "too large":
            in_background(link, chunk(12 * MIB))
        else:
            plane.call(plane.worker.cut)
        plane.wait_settled()


def test_an_answer_stays_counted_while_its_client_does_not_read_it() -> None:
    with played() as (plane, backend, clients):
        wire = asking(plane, clients, receive_buffer=64 << 10)
        backend.answer(chunk(10 * MIB), LAST)
        plane.wait_for(held=10 * MIB, calls=0)
        for _ in range(20):
            assert plane.state()["held"] == 10 * MIB
        reply = wire.reply()
        assert reply is not None
        assert (reply.complete, len(reply.body)) == (True, 10 * MIB)
        plane.wait_for(held=0)


def test_an_answer_whose_client_left_is_freed_without_the_collector() -> None:
    with played() as (plane, backend, clients):
        wire = asking(plane, clients, receive_buffer=64 << 10)
        backend.answer(chunk(10 * MIB), LAST)
        plane.wait_for(held=10 * MIB, calls=0)
        gc.collect()
        gc.disable()
        try:
            assert plane.call(kept) == [10 * MIB]
            wire.reset()
            plane.wait_settled()
            assert plane.call(kept) == []
        finally:
            gc.enable()


def test_a_client_that_never_reads_its_gathered_answer_is_given_up() -> None:
    with played(write_timeout_s=0.3) as (plane, backend, clients):
        asking(plane, clients, receive_buffer=64 << 10)
        backend.answer(chunk(10 * MIB), LAST)
        plane.wait_settled()
        assert plane.statuses() == {"499": 1}


def test_over_the_limit_backends_are_paused_and_bodies_refused_until_there_is_room() -> None:
    with played() as (plane, backend, clients):
        wires = [asking(plane, clients)]
        first = backend.answer(chunk(8 * MIB))
        plane.wait_for(held=8 * MIB)
        wires.append(asking(plane, clients))
        second = backend.answer(chunk(8 * MIB))  # the one that may go on
        plane.wait_for(held=16 * MIB)
        wires.append(asking(plane, clients))
        third = backend.answer()
        waiting = in_background(third, chunk(10 * MIB) + LAST)
        plane.wait_for(calls=3)
        for _ in range(20):
            assert plane.state()["held"] <= 17 * MIB
        assert ask(plane.port, body=chat("x" * 100_000)).code == "buffers_full"
        assert not waiting.done()
        for link in (first, second):
            in_background(link, LAST)
        for wire in wires:
            reply = wire.reply()
            assert reply is not None
            assert (reply.status, reply.complete) == (200, True)
        waiting.result(WATCHDOG_S)


def test_answers_that_fill_the_limit_among_themselves_all_end() -> None:
    with played() as (plane, backend, clients):
        wires = [asking(plane, clients) for _ in range(5)]
        for _ in wires:
            in_background(backend.answer(), chunk(11 * MIB) + LAST)
        with ThreadPoolExecutor(
            len(wires)
        ) as readers:  # which of them goes first is not for a client to know
            for reply in readers.map(Wire.reply, wires):
                assert reply is not None
                assert (reply.status, len(reply.body)) == (200, 11 * MIB)
