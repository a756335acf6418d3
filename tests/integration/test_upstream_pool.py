"""The pool against a server that does what it is told, over real sockets."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from penstock.gateway.upstream.call import HOLD_BYTES, CallTimeouts
from penstock.gateway.upstream.connection import WHOLE_BYTES
from penstock.gateway.upstream.fault import BodyTooLarge, FaultKind, UpstreamFault
from tests.support.scripted import (
    CHUNKED,
    TIMEOUTS,
    Clock,
    Peer,
    Recorder,
    Server,
    chunk,
    on_uvloop,
    open_sockets,
    pool_for,
    reply,
    request,
    scripted,
    until,
)


async def answer_all(peer: Peer) -> None:
    """200 to everything, with the request's body."""
    while True:
        _, body = await peer.request()
        await peer.send(reply(body or b"ok"))


def answer_with(*parts: bytes, close: bool = False) -> Callable[[Peer], Awaitable[None]]:
    """Each request gets these bytes."""

    async def handler(peer: Peer) -> None:
        while True:
            await peer.request()
            for part in parts:
                await peer.send(part)
            if close:
                return

    return handler


@on_uvloop
async def test_a_small_response_comes_back_whole_and_its_connection_is_used_again() -> None:
    async with scripted(answer_all) as server, pool_for(server.url) as pool:
        for number in range(3):
            body = b"hello %d" % number
            call = await pool.call(*request(body), TIMEOUTS)
            assert (call.status, call.complete, call.body) == (200, True, body)
            assert call.headers == [(b"Content-Length", b"7")]
            assert (call.content_length, call.chunked, call.reused) == (7, False, number > 0)
            assert (pool.active, pool.idle) == (0, 1)
        assert server.connections == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@on_uvloop
async def test_a_request_without_a_body_is_its_head(method: str) -> None:
    seen: list[bytes] = []

    async def handler(peer: Peer) -> None:
        seen.append((await peer.request())[0])
        await peer.send(reply())

    async with scripted(handler) as server, pool_for(server.url) as pool:
        await pool.call(*request(method=method), TIMEOUTS)
    assert seen[0].startswith(method.encode())


@on_uvloop
async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    async with scripted(answer_all, uds=tmp_path / "s") as server, pool_for(server.url) as pool:
        call = await pool.call(*request(b"x"), TIMEOUTS)
        assert call.body == b"x"
        assert pool.idle == 1


@on_uvloop
async def test_nagle_is_off() -> None:
    async with scripted(answer_all) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(b"x"), TIMEOUTS)
        transport = pool._idle[0].transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert call.complete


@on_uvloop
async def test_the_connection_used_last_is_used_first() -> None:
    clock = Clock()
    order: list[int] = []

    async def handler(peer: Peer) -> None:
        while True:
            await peer.request()
            order.append(peer.number)
            await peer.send(reply())

    async with scripted(handler) as server, pool_for(server.url, clock=clock) as pool:
        await asyncio.gather(*[pool.call(*request(), TIMEOUTS) for _ in range(3)])
        assert pool.idle == 3
        last = order[-1]
        order.clear()
        for _ in range(4):
            await pool.call(*request(), TIMEOUTS)
        assert order == [last] * 4


@on_uvloop
async def test_more_than_max_idle_are_kept_for_an_instant_only() -> None:
    clock = Clock()
    async with scripted(answer_all) as server, pool_for(server.url, clock=clock, max_idle=2) as pool:
        await asyncio.gather(*[pool.call(*request(), TIMEOUTS) for _ in range(5)])
        pool.tick(clock.now)
        assert (pool.active, pool.idle) == (0, 5)
        clock.now += 1
        pool.tick(clock.now)
        assert (pool.active, pool.idle) == (0, 2)
        await until(lambda: server.open == 2)


@on_uvloop
async def test_a_connection_idles_for_its_time_only() -> None:
    clock = Clock()
    async with scripted(answer_all) as server, pool_for(server.url, clock=clock, min_idle=5) as pool:
        await pool.call(*request(), TIMEOUTS)
        clock.now += 3.9
        pool.tick(clock.now)
        assert pool.idle == 1
        clock.now += 0.2
        pool.tick(clock.now)
        assert pool.idle == 0
        await until(lambda: server.open == 0)


@on_uvloop
async def test_a_connection_that_idled_too_long_is_not_used_even_before_the_tick() -> None:
    clock = Clock()
    async with scripted(answer_all) as server, pool_for(server.url, clock=clock) as pool:
        await pool.call(*request(), TIMEOUTS)
        clock.now += 4.1
        call = await pool.call(*request(), TIMEOUTS)
        assert not call.reused
        assert (server.connections, pool.idle) == (2, 1)


@on_uvloop
async def test_min_idle_connections_stay_as_long_as_the_server_says() -> None:
    clock = Clock()
    handler = answer_with(reply(extra=b"Keep-Alive: timeout=30\r\n"))
    async with scripted(handler) as server, pool_for(server.url, clock=clock, min_idle=2) as pool:
        await asyncio.gather(*[pool.call(*request(), TIMEOUTS) for _ in range(5)])
        clock.now += 10
        pool.tick(clock.now)
        assert pool.idle == 2
        clock.now += 19.5
        pool.tick(clock.now)
        assert pool.idle == 0


@on_uvloop
async def test_a_server_that_keeps_connections_for_less_is_believed() -> None:
    clock = Clock()
    handler = answer_with(reply(extra=b"Keep-Alive: timeout=2\r\n"))
    async with scripted(handler) as server, pool_for(server.url, clock=clock, min_idle=2) as pool:
        await pool.call(*request(), TIMEOUTS)
        clock.now += 1.1
        call = await pool.call(*request(), TIMEOUTS)
        assert not call.reused


@on_uvloop
async def test_an_idle_connection_that_ends_is_gone_at_once() -> None:
    async with scripted(answer_with(reply(), close=True)) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert call.complete
        await until(lambda: pool.idle == 0)


@on_uvloop
async def test_an_idle_connection_on_which_bytes_arrive_is_gone_at_once() -> None:
    speak = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply())
        await speak.wait()
        await peer.send(reply(b"nobody asked"))
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        await pool.call(*request(), TIMEOUTS)
        assert pool.idle == 1
        speak.set()
        await until(lambda: pool.idle == 0)
        await until(lambda: server.open == 0)


@on_uvloop
async def test_bytes_after_a_response_are_not_the_next_answer() -> None:
    handler = answer_with(reply(b"first") + reply(b"smuggled"))
    async with scripted(handler) as server, pool_for(server.url) as pool:
        for _ in range(2):
            call = await pool.call(*request(), TIMEOUTS)
            assert call.body == b"first"
            assert pool.idle == 0
        assert server.connections == 2


@on_uvloop
async def test_fresh_forces_a_new_connection() -> None:
    async with scripted(answer_all) as server, pool_for(server.url) as pool:
        await pool.call(*request(), TIMEOUTS)
        call = await pool.call(*request(), TIMEOUTS, fresh=True)
        assert not call.reused
        assert (server.connections, pool.idle) == (2, 2)


# -- streams ---------------------------------------------------------------------------------------


@on_uvloop
async def test_a_stream_is_pushed_read_by_read_and_its_connection_is_used_again() -> None:
    steps = asyncio.Queue[bytes]()

    async def handler(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(CHUNKED)
            while piece := await steps.get():
                await peer.send(chunk(piece))
            await peer.send(chunk(b""))

    async with scripted(handler) as server, pool_for(server.url) as pool:
        for number in range(2):
            calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
            steps.put_nowait(b"one")
            call = await calling
            assert (call.status, call.complete, call.chunked, call.body) == (200, False, True, b"one")
            assert call.reused is (number > 0)
            assert (pool.active, pool.idle) == (1, 0)
            sink = Recorder()
            call.attach(sink)
            assert sink.pieces == [b"one"]
            steps.put_nowait(b"two")
            await until(lambda sink=sink: len(sink.pieces) == 2)
            steps.put_nowait(b"")
            await until(lambda sink=sink: sink.settled)
            assert (sink.pieces, sink.ended, sink.fault) == ([b"one", b"two"], 1, None)
            assert (pool.active, pool.idle) == (0, 1)
        assert server.connections == 1


@on_uvloop
async def test_the_chunks_of_one_read_are_one_piece() -> None:
    handler = answer_with(CHUNKED + chunk(b"a") + chunk(b"b") + chunk(b"c"), chunk(b"d") + chunk(b""))
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert call.body.startswith(b"abc")
        assert await call.read_all(100) == b"abcd"


@on_uvloop
async def test_a_chunked_response_that_ends_in_the_read_that_began_it_is_complete() -> None:
    handler = answer_with(CHUNKED + chunk(b"all") + chunk(b""))
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert (call.complete, call.body, pool.idle) == (True, b"all", 1)


@on_uvloop
async def test_a_small_body_in_many_pieces_still_comes_back_whole() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        for at, byte in enumerate(reply(b"x" * 50)):
            await peer.send(bytes([byte]))
            if at % 10 == 0:
                await asyncio.sleep(0)
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert (call.complete, call.body) == (True, b"x" * 50)


@on_uvloop
async def test_a_large_body_begins_before_it_is_whole() -> None:
    body = bytes(range(256)) * 4096
    async with scripted(answer_with(reply(body))) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert not call.complete
        assert call.content_length == len(body) > WHOLE_BYTES
        assert await call.read_all(len(body)) == body
        assert pool.idle == 1


@on_uvloop
async def test_a_close_delimited_body_ends_with_the_connection() -> None:
    handler = answer_with(b"HTTP/1.1 200 OK\r\n\r\n", b"all ", b"of it", close=True)
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert await call.read_all(100) == b"all of it"
        assert (pool.active, pool.idle) == (0, 0)


@on_uvloop
async def test_an_empty_close_delimited_body_is_complete() -> None:
    handler = answer_with(b"HTTP/1.1 200 OK\r\n\r\n", close=True)
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert (call.complete, call.body) == (True, b"")


@on_uvloop
async def test_what_ends_before_a_sink_is_attached_is_told_then() -> None:
    handler = answer_with(CHUNKED + chunk(b"a"), chunk(b"b") + chunk(b""))
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        await until(lambda: pool.idle == 1)
        sink = Recorder()
        call.attach(sink)
        assert (sink.data, sink.ended) == (b"ab", 1)
        with pytest.raises(RuntimeError):
            call.attach(Recorder())


@on_uvloop
async def test_a_fault_before_a_sink_is_attached_is_told_then() -> None:
    async with (
        scripted(answer_with(CHUNKED + chunk(b"a"), close=True)) as server,
        pool_for(server.url) as pool,
    ):
        call = await pool.call(*request(), TIMEOUTS)
        await until(lambda: pool.active == 0)
        sink = Recorder()
        call.attach(sink)
        assert sink.data == b"a"
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.CLOSED


async def flood(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED)
    block = chunk(b"x" * 65536)
    while True:
        await peer.send(block)


async def stalled(peer: Peer) -> None:
    """Wait until the peer's transport holds what the client does not take."""
    transport = peer.writer.transport
    last = -1

    def full() -> bool:
        nonlocal last
        size = transport.get_write_buffer_size()
        stopped = size > 0 and size == last
        last = size
        return stopped

    for _ in range(5):
        await until(full)


@pytest.mark.parametrize("first", [b"", b"small"])
@on_uvloop
async def test_without_a_sink_no_more_than_256_kib_are_held(first: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        if first:
            await peer.send(chunk(first))
            await go.wait()
        block = chunk(b"x" * 65536)
        while True:
            await peer.send(block)

    go = asyncio.Event()
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        go.set()
        await stalled(server.peers[0])
        held = len(call.body) + call._held_bytes
        assert HOLD_BYTES < held <= 256 * 1024
        sink = Recorder()
        call.attach(sink)
        await until(lambda: len(sink.data) > 4 * 1024 * 1024)
        call.abort()
        assert pool.active == 0


@on_uvloop
async def test_a_paused_call_reads_nothing_and_goes_on_when_resumed() -> None:
    async with scripted(flood) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        call.pause()
        assert call.paused
        call.pause()
        before = len(sink.data)
        await stalled(server.peers[0])
        assert len(sink.data) == before
        call.resume()
        call.resume()
        await until(lambda: len(sink.data) > before + 4 * 1024 * 1024)
        call.abort()


@on_uvloop
async def test_after_abort_the_sink_hears_nothing() -> None:
    async with scripted(flood) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        call.abort()
        call.abort()
        call.pause()
        call.resume()
        pieces = len(sink.pieces)
        await until(lambda: server.open == 0)
        assert (len(sink.pieces), sink.settled, pool.active) == (pieces, False, 0)


@on_uvloop
async def test_a_sink_may_abort_or_pause_from_within() -> None:
    class Once(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            call.pause()
            call.abort()

    both = CHUNKED + chunk(b"a"), chunk(b"b") + chunk(b"")
    async with scripted(answer_with(*both)) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Once()
        call.attach(sink)
        assert len(sink.pieces) == 1
        assert not sink.settled
        assert pool.active == 0


@on_uvloop
async def test_aborting_from_the_last_piece_leaves_the_connection_to_the_pool() -> None:
    go = asyncio.Event()

    class Last(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            if data.endswith(b"b"):
                call.pause()
                call.abort()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"a"))
        await go.wait()
        await peer.send(chunk(b"b") + chunk(b""))
        await answer_all(peer)

    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Last()
        call.attach(sink)
        go.set()
        await until(lambda: pool.idle == 1)
        assert (sink.data, sink.settled) == (b"ab", False)
        assert (await pool.call(*request(b"next"), TIMEOUTS)).body == b"next"
        assert server.connections == 1


@on_uvloop
async def test_read_all_refuses_what_is_too_long() -> None:
    body = b"x" * 200_000
    async with scripted(answer_with(reply(body))) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        with pytest.raises(BodyTooLarge):
            await call.read_all(len(body) - 1)
        assert pool.active == 0
    async with (
        scripted(answer_with(CHUNKED, chunk(body), chunk(b""))) as server,
        pool_for(server.url) as pool,
    ):
        call = await pool.call(*request(), TIMEOUTS)
        with pytest.raises(BodyTooLarge):
            await call.read_all(len(body) - 1)
        assert pool.active == 0
    async with scripted(answer_with(reply(b"small"))) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        with pytest.raises(BodyTooLarge):
            await call.read_all(4)


# -- faults ----------------------------------------------------------------------------------------


async def fault_of(server: Server, *, calls_before: int = 0) -> UpstreamFault:
    async with pool_for(server.url) as pool:
        for _ in range(calls_before):
            await pool.call(*request(), TIMEOUTS)
        with pytest.raises(UpstreamFault) as caught:
            await pool.call(*request(), TIMEOUTS)
        assert (pool.active, pool.idle) == (0, 0)
    return caught.value


@on_uvloop
async def test_a_stale_keep_alive_connection_is_recognised() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply())
        await peer.request()
        peer.reset()

    async with scripted(handler) as server:
        fault = await fault_of(server, calls_before=1)
    assert (fault.kind, fault.reused, fault.got_bytes, fault.stale) == (FaultKind.CLOSED, True, False, True)


@on_uvloop
async def test_a_new_connection_that_closes_is_not_stale() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()

    async with scripted(handler) as server:
        fault = await fault_of(server)
    assert (fault.kind, fault.reused, fault.got_bytes, fault.stale) == (FaultKind.CLOSED, False, False, False)


@pytest.mark.parametrize(
    "part", [b"H", b"HTTP/1.1 200 OK\r\n", reply(b"hello")[:-1], CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n"]
)
@on_uvloop
async def test_a_response_cut_short_is_a_fault_with_bytes(part: bytes) -> None:
    async with scripted(answer_with(part, close=True)) as server:
        fault = await fault_of(server)
    assert (fault.kind, fault.got_bytes, fault.stale) == (FaultKind.CLOSED, True, False)


@pytest.mark.parametrize("after", [b"", chunk(b"more")[:-3]])
@on_uvloop
async def test_a_stream_cut_short_is_never_a_clean_end(after: bytes) -> None:
    handler = answer_with(CHUNKED + chunk(b"a"), after, close=True)
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        await until(lambda: sink.settled)
        assert sink.fault is not None
        assert (sink.fault.kind, sink.fault.got_bytes) == (FaultKind.CLOSED, True)
        assert pool.active == 0


@on_uvloop
async def test_a_close_delimited_stream_that_is_reset_is_not_complete() -> None:
    cut = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await cut.wait()
        peer.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        peer.reset()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        cut.set()
        await until(lambda: sink.settled)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.CLOSED


@on_uvloop
async def test_garbage_in_mid_stream_comes_after_what_was_good() -> None:
    go = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"a"))
        await go.wait()
        await peer.send(chunk(b"b") + b"zz\r\n")
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        go.set()
        await until(lambda: sink.settled)
        assert sink.data == b"ab"
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.PROTOCOL
        assert pool.active == 0


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"SSH-2.0-OpenSSH\r\n", FaultKind.PROTOCOL),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", FaultKind.PROTOCOL),
        (b"HTTP/1.1 700 X\r\nContent-Length: 0\r\n\r\n", FaultKind.PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000, FaultKind.TOO_LARGE),
    ],
)
@on_uvloop
async def test_what_is_no_response_is_a_fault_and_closes_the_connection(head: bytes, kind: FaultKind) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await peer.forever()

    async with scripted(handler) as server:
        fault = await fault_of(server)
        assert (fault.kind, fault.got_bytes) == (kind, True)
        await until(lambda: server.open == 0)


@on_uvloop
async def test_nobody_listening_is_a_failed_connect() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        fault = await fault_of(Server(f"http://127.0.0.1:{sock.getsockname()[1]}"))
    assert (fault.kind, fault.detail) == (FaultKind.CONNECT_FAILED, "ECONNREFUSED")


@on_uvloop
async def test_no_such_unix_socket_is_a_failed_connect(tmp_path: Path) -> None:
    fault = await fault_of(Server(f"unix://{tmp_path}/none"))
    assert (fault.kind, fault.detail) == (FaultKind.CONNECT_FAILED, "ENOENT")


@on_uvloop
async def test_a_name_that_does_not_exist_is_a_dns_fault() -> None:
    fault = await fault_of(Server("http://no-such-host.invalid:1"))
    assert fault.kind is FaultKind.DNS_FAILED


# -- requests --------------------------------------------------------------------------------------


@on_uvloop
async def test_a_response_before_the_request_was_read_is_taken_and_the_connection_is_not_used_again() -> None:
    async def handler(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(reply(b"too much", status=413))
        await asyncio.Event().wait()

    body = b"x" * (64 * 1024 * 1024)
    async with scripted(handler) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(body), TIMEOUTS)
        assert (call.status, call.body) == (413, b"too much")
        assert (pool.active, pool.idle) == (0, 0)


@on_uvloop
async def test_a_long_request_that_was_read_leaves_a_usable_connection() -> None:
    body = b"x" * (8 * 1024 * 1024)
    async with scripted(answer_with(reply())) as server, pool_for(server.url) as pool:
        for number in range(2):
            call = await pool.call(*request(body), TIMEOUTS)
            assert call.reused is (number > 0)
            assert pool.idle == 1


# -- deadlines -------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await peer.forever()


async def expect_fault(calling: "asyncio.Future[object]") -> UpstreamFault:
    with pytest.raises(UpstreamFault) as caught:
        await calling
    return caught.value


@on_uvloop
async def test_the_first_byte_has_its_deadline() -> None:
    clock = Clock()
    async with scripted(silent) as server, pool_for(server.url, clock=clock) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), CallTimeouts(first_byte_s=5)))
        await until(lambda: server.connections == 1 and pool._active)
        clock.now += 4.9
        pool.tick(clock.now)
        assert pool.active == 1
        clock.now += 0.1
        pool.tick(clock.now)
        fault = await expect_fault(calling)
        assert (fault.kind, fault.got_bytes) == (FaultKind.FIRST_BYTE_TIMEOUT, False)
        assert pool.active == 0
        await until(lambda: server.open == 0)


@on_uvloop
async def test_informational_responses_do_not_move_the_first_bytes_deadline() -> None:
    clock = Clock()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url, clock=clock) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), CallTimeouts(first_byte_s=5)))
        await until(lambda: any(c._call and c._call.got_bytes for c in pool._active))
        clock.now += 5
        pool.tick(clock.now)
        fault = await expect_fault(calling)
        assert (fault.kind, fault.got_bytes) == (FaultKind.FIRST_BYTE_TIMEOUT, True)


@on_uvloop
async def test_the_time_between_chunks_has_its_deadline_and_each_chunk_starts_it_anew() -> None:
    clock = Clock()
    steps = asyncio.Queue[bytes]()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(chunk(await steps.get()))

    timeouts = CallTimeouts(first_byte_s=5, between_chunks_s=3)
    async with scripted(handler) as server, pool_for(server.url, clock=clock) as pool:
        steps.put_nowait(b"a")
        call = await pool.call(*request(), timeouts)
        sink = Recorder()
        call.attach(sink)
        for expected in (b"ab", b"abc"):
            clock.now += 2
            pool.tick(clock.now)
            steps.put_nowait(expected[-1:])
            await until(lambda expected=expected: sink.data == expected)
        clock.now += 3
        pool.tick(clock.now)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.BETWEEN_CHUNKS_TIMEOUT
        assert pool.active == 0


@on_uvloop
async def test_the_clock_between_chunks_stands_still_while_paused() -> None:
    clock = Clock()
    handler = answer_with(CHUNKED + chunk(b"a"))
    timeouts = CallTimeouts(first_byte_s=5, between_chunks_s=3)
    async with scripted(handler) as server, pool_for(server.url, clock=clock) as pool:
        call = await pool.call(*request(), timeouts)
        sink = Recorder()
        call.attach(sink)
        call.pause()
        clock.now += 100
        pool.tick(clock.now)
        assert not sink.settled
        call.resume()
        clock.now += 2.9
        pool.tick(clock.now)
        assert not sink.settled
        clock.now += 0.1
        pool.tick(clock.now)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.BETWEEN_CHUNKS_TIMEOUT


@on_uvloop
async def test_the_total_deadline_runs_from_where_the_caller_says_and_while_paused() -> None:
    clock = Clock()
    handler = answer_with(CHUNKED + chunk(b"a"))
    async with scripted(handler) as server, pool_for(server.url, clock=clock) as pool:
        call = await pool.call(*request(), CallTimeouts(total_s=10), total_started=clock.now - 4)
        sink = Recorder()
        call.attach(sink)
        call.pause()
        clock.now += 5.9
        pool.tick(clock.now)
        assert not sink.settled
        clock.now += 0.1
        pool.tick(clock.now)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.TOTAL_TIMEOUT


@on_uvloop
async def test_no_deadline_is_zero() -> None:
    clock = Clock()
    timeouts = CallTimeouts(connect_s=0, first_byte_s=0, between_chunks_s=0, total_s=0)
    async with (
        scripted(answer_with(CHUNKED + chunk(b"a"))) as server,
        pool_for(server.url, clock=clock) as pool,
    ):
        call = await pool.call(*request(), timeouts)
        sink = Recorder()
        call.attach(sink)
        clock.now += 1e9
        pool.tick(clock.now)
        assert not sink.settled
        call.abort()


def full_listener(host: str = "127.0.0.1") -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose accept queue is full: the next connect gets no answer."""
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers


@pytest.mark.parametrize(
    ("timeouts", "kind"),
    [
        (CallTimeouts(connect_s=0.05), FaultKind.CONNECT_TIMEOUT),
        (CallTimeouts(connect_s=60, total_s=0.05), FaultKind.TOTAL_TIMEOUT),
    ],
)
@on_uvloop
async def test_a_connect_has_its_deadline(timeouts: CallTimeouts, kind: FaultKind) -> None:
    listener, fillers = full_listener()
    before = open_sockets()
    try:
        async with pool_for(f"http://127.0.0.1:{listener.getsockname()[1]}") as pool:
            calling = asyncio.ensure_future(pool.call(*request(), timeouts))
            await asyncio.sleep(0)
            assert pool.active == 1
            assert (await expect_fault(calling)).kind is kind
            assert pool.active == 0
        assert open_sockets() == before
    finally:
        for sock in (listener, *fillers):
            sock.close()


# -- cancellation ----------------------------------------------------------------------------------


@on_uvloop
async def test_cancelling_while_connecting_leaves_nothing() -> None:
    listener, fillers = full_listener()
    before = open_sockets()
    try:
        async with pool_for(f"http://127.0.0.1:{listener.getsockname()[1]}") as pool:
            calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert pool.active == 1
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert pool.active == 0
        assert open_sockets() == before
    finally:
        for sock in (listener, *fillers):
            sock.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 20", b"HTTP/1.1 100 Continue\r\n\r\n", reply(b"hello")[:-2], CHUNKED, CHUNKED + b"5\r"],
    ids=["sent", "status line", "interim", "mid-body", "head", "chunk size"],
)
@on_uvloop
async def test_cancelling_while_waiting_closes_the_connection_and_leaves_nothing(sent: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        if sent:
            await peer.send(sent)
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(
            lambda: (
                server.connections == 1
                and any(c._call and c._call.got_bytes is bool(sent) for c in pool._active)
            )
        )
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert (pool.active, pool.idle) == (0, 0)
        await until(lambda: server.open == 0)


@on_uvloop
async def test_cancelling_in_the_moment_the_answer_comes_loses_no_connection() -> None:
    async with scripted(answer_all) as server, pool_for(server.url) as pool:
        await pool.call(*request(), TIMEOUTS)
        connection = pool._idle[0]
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await asyncio.sleep(0)
        # the answer and the cancellation in one turn of the loop
        connection.data_received(reply())
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert pool.active == 0


@on_uvloop
async def test_cancelling_read_all_closes_the_connection() -> None:
    async with scripted(answer_with(CHUNKED + chunk(b"a"))) as server, pool_for(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        reading = asyncio.ensure_future(call.read_all(100))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pool.active == 0
        await until(lambda: server.open == 0)


# -- closing ---------------------------------------------------------------------------------------


@on_uvloop
async def test_closing_waits_for_calls_in_progress_and_drops_those_that_outlast_its_grace() -> None:
    go = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"a"))
        if peer.number == 0:
            await go.wait()
            await peer.send(chunk(b"b") + chunk(b""))
        await peer.forever()

    async with scripted(handler) as server, pool_for(server.url) as pool:
        first, second = Recorder(), Recorder()
        (await pool.call(*request(), TIMEOUTS)).attach(first)
        closing = asyncio.ensure_future(pool.close(20))
        await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        await closing
        assert (first.data, first.ended, pool.idle) == (b"ab", 1, 0)
        # a request that had chosen this backend still gets through
        (await pool.call(*request(), TIMEOUTS)).attach(second)
        await pool.close(0.01)
        assert second.fault is not None
        assert second.fault.kind is FaultKind.CLOSED
        await until(lambda: server.open == 0)


# -- happy eyeballs --------------------------------------------------------------------------------


@on_uvloop
async def test_a_name_with_a_dead_address_first_is_reached_by_the_next() -> None:
    async with scripted(answer_all) as server, pool_for(server.url.replace("127.0.0.1", "backend")) as pool:
        port = pool.origin.port
        loop = asyncio.get_running_loop()

        async def two_addresses(*_: object, **__: object) -> list[object]:
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        class Loop:
            create_task = loop.create_task
            getaddrinfo = staticmethod(two_addresses)

        pool._connector._resolver._loop = Loop()  # type: ignore[assignment]
        call = await pool.call(*request(b"x"), TIMEOUTS)
        assert call.body == b"x"
        assert server.connections == 1


@on_uvloop
async def test_a_name_whose_first_address_is_silent_is_reached_by_the_next() -> None:
    listener, fillers = full_listener("127.0.0.2")
    port = listener.getsockname()[1]
    loop = asyncio.get_running_loop()
    answered = await loop.create_server(lambda: Canned(), "127.0.0.1", port)
    try:
        async with pool_for(f"http://backend:{port}") as pool:

            async def two_addresses(*_: object, **__: object) -> list[object]:
                return [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
                    for host in ("127.0.0.2", "127.0.0.1")
                ]

            class Loop:
                create_task = loop.create_task
                getaddrinfo = staticmethod(two_addresses)

            pool._connector._resolver._loop = Loop()  # type: ignore[assignment]
            before = open_sockets()
            call = await pool.call(*request(), TIMEOUTS)
            assert call.body == b"ok"
            await until(lambda: open_sockets() == before + 2)
    finally:
        answered.close()
        for sock in (listener, *fillers):
            sock.close()


class Canned(asyncio.Protocol):
    """Answers whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(reply())


@on_uvloop
async def test_what_a_call_leaves_behind_needs_no_cycle_collector() -> None:
    """The collector of a worker is tuned to run seldom: connections and faults must go by reference counts
    alone.
    """

    async def handler(peer: Peer) -> None:
        await peer.request()
        if peer.number % 2 == 0:
            await peer.send(reply())
            await peer.forever()
        else:
            await peer.send(CHUNKED + chunk(b"a") + b"zz\r\n")

    gc.collect()
    gc.disable()
    try:
        async with scripted(handler) as server, pool_for(server.url) as pool:
            left: list[weakref.ref[object]] = []
            for number in range(4):
                try:
                    call = await pool.call(*request(), TIMEOUTS, fresh=True)
                    assert number % 2 == 0
                    left += [weakref.ref(pool._idle[-1]), weakref.ref(pool._idle[-1]._reader)]
                    assert call.complete
                    del call
                except UpstreamFault as fault:
                    left.append(weakref.ref(fault))
            await pool.close()
            await until(lambda: server.open == 0)
            await until(lambda: not [ref() for ref in left if ref() is not None])
    finally:
        gc.enable()


@on_uvloop
async def test_a_thousand_calls_at_64_in_flight_leave_no_count_behind() -> None:
    async with scripted(answer_all) as server, pool_for(server.url, max_idle=64) as pool:

        async def some(number: int) -> None:
            for step in range(16):
                body = b"%d/%d" % (number, step)
                assert (await pool.call(*request(body), TIMEOUTS)).body == body

        await asyncio.gather(*[some(number) for number in range(64)])
        assert pool.active == 0
        assert server.connections <= 64
