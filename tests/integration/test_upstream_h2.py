"""The HTTP/2 pool against a server that does what it is told, over real sockets."""

import asyncio
import gc
import ssl
import weakref
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, PingReceived

from penstock.gateway.upstream.call import CallTimeouts
from penstock.gateway.upstream.connection import WHOLE_BYTES
from penstock.gateway.upstream.fault import BodyTooLarge, FaultKind, UpstreamFault
from penstock.gateway.upstream.h2 import WINDOW_BYTES
from penstock.gateway.upstream.h2_connection import PING_AFTER_S, PING_ANSWER_S
from penstock.gateway.upstream.tls import TlsClient
from tests.support.h2_server import Asked, H2Peer, each, echo, frame, h2_pool, h2_scripted
from tests.support.scripted import (
    TIMEOUTS,
    Clock,
    Recorder,
    certificate,
    on_uvloop,
    open_sockets,
    request,
    scripted,
    until,
)


async def silent(peer: H2Peer) -> None:
    await peer.forever()


@on_uvloop
async def test_small_responses_come_back_whole_over_one_connection() -> None:
    async with h2_scripted(each(echo)) as server, h2_pool(server.url) as pool:
        for number in range(3):
            body = b"hello %d" % number
            call = await pool.call(*request(body), TIMEOUTS)
            assert (call.status, call.complete, call.body) == (200, True, body)
            assert call.headers == [(b"content-length", b"7")]
            assert (call.content_length, call.reused) == (7, number > 0)
            assert (pool.active, pool.idle, pool.connections) == (0, 1, 1)
        assert len(server.peers) == 1
        asked = server.peers[0].asked[1]
        assert asked.fields == [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"test"), (b":path", b"/v1/x")),
            (b"content-length", b"7"),
        ]


@on_uvloop
async def test_a_thousand_streams_at_a_time_over_ten_connections() -> None:
    go = asyncio.Event()

    async def answer(peer: H2Peer, asked: Asked) -> None:
        await go.wait()
        await echo(peer, asked)

    async with (
        h2_scripted(each(answer)) as server,
        h2_pool(server.url, min_connections=10, max_connections=10) as pool,
    ):
        calls = [
            asyncio.ensure_future(pool.call(*request(b"%d" % number), TIMEOUTS)) for number in range(1000)
        ]
        await until(lambda: server.asked == 1000)
        assert (len(server.peers), pool.active) == (10, 1000)
        assert {peer.most_streams for peer in server.peers} == {100}
        go.set()
        assert [call.body for call in await asyncio.gather(*calls)] == [b"%d" % n for n in range(1000)]
        assert (pool.active, pool.idle, pool.connections) == (0, 10, 10)
    await until(lambda: server.open == 0)


@on_uvloop
async def test_calls_are_spread_before_they_share_and_the_least_busy_connection_is_next() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url, min_connections=3) as pool:
        calls = []
        for number in range(9):
            calls.append(asyncio.ensure_future(pool.call(*request(), TIMEOUTS)))
            await until(lambda number=number: server.asked == number + 1)
        assert [len(peer.asked) for peer in server.peers] == [3, 3, 3]
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


@on_uvloop
async def test_more_than_all_connections_carry_waits_in_order() -> None:
    order: dict[H2Peer, list[bytes]] = {}

    async def answer(peer: H2Peer, asked: Asked) -> None:
        order.setdefault(peer, []).append(asked.body)
        await echo(peer, asked)

    limits = {"min_connections": 1, "max_connections": 2, "max_streams": 3}
    async with h2_scripted(each(answer)) as server, h2_pool(server.url, **limits) as pool:
        calls = [pool.call(*request(b"%02d" % number), TIMEOUTS) for number in range(20)]
        bodies = [call.body for call in await asyncio.gather(*calls)]
        assert bodies == [b"%02d" % number for number in range(20)]
        assert len(server.peers) == 2
        assert max(peer.most_streams for peer in server.peers) == 3
        assert all(asked == sorted(asked) for asked in order.values())  # the two are not read in turns
        assert not pool._waiting


@on_uvloop
async def test_the_server_says_how_many_streams_it_takes() -> None:
    async with (
        h2_scripted(each(echo), max_concurrent_streams=2) as server,
        h2_pool(server.url, max_connections=3) as pool,
    ):
        await asyncio.gather(*[pool.call(*request(), TIMEOUTS) for _ in range(30)])
        assert len(server.peers) == 3
        assert max(peer.most_streams for peer in server.peers) == 2


@on_uvloop
async def test_a_server_that_allows_no_stream_is_not_given_one_connection_after_another() -> None:
    clock = Clock()
    async with (
        h2_scripted(silent, max_concurrent_streams=0) as server,
        h2_pool(server.url, clock=clock, min_connections=1, max_connections=9) as pool,
    ):
        waiting = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: pool.idle > 0)
        assert pool._total == 1
        clock.now += 1  # as after one that could not be opened
        pool.tick(clock.now)
        await until(lambda: pool.idle > 1)
        assert pool._total == 2
        waiting.cancel()
        await asyncio.wait([waiting])


@on_uvloop
async def test_a_call_that_finds_no_stream_fails_at_its_connect_deadline() -> None:
    clock = Clock()
    limits = {"max_connections": 1, "max_streams": 1}
    async with h2_scripted(silent) as server, h2_pool(server.url, clock=clock, **limits) as pool:
        first = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        second = asyncio.ensure_future(pool.call(*request(), CallTimeouts(connect_s=5)))
        third = asyncio.ensure_future(pool.call(*request(), CallTimeouts(connect_s=9, total_s=4)))
        await asyncio.sleep(0)
        assert pool.active == 3
        for passed, late, kind in (
            (4.0, third, FaultKind.TOTAL_TIMEOUT),
            (1.0, second, FaultKind.CONNECT_TIMEOUT),
        ):
            clock.now += passed
            pool.tick(clock.now)
            with pytest.raises(UpstreamFault) as caught:
                await late
            assert caught.value.kind is kind
        assert pool.active == 1
        first.cancel()
        await asyncio.wait([first])


# -- streams ---------------------------------------------------------------------------------------


@on_uvloop
async def test_a_stream_is_pushed_piece_by_piece_and_its_frames_are_the_cuts() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        cuts: list[int] = []
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS, cuts=cuts))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.head(1, 200, (b"content-type", b"text/event-stream"))
        peer.piece(1, b"one")
        call = await calling
        assert (call.complete, call.chunked, call.content_length, call.body) == (False, True, None, b"one")
        sink = Recorder()
        call.attach(sink)
        peer.piece(1, b"two")
        await until(lambda: len(sink.pieces) == 2)
        peer.h2.send_data(1, b"3")
        peer.h2.send_data(1, b"4", end_stream=True, pad_length=200)
        peer.flush()
        await until(lambda: sink.settled)
        assert (sink.pieces, sink.ended, sink.fault) == ([b"one", b"two", b"34"], 1, None)
        assert cuts == [3, 6, 7, 8]
        assert (pool.active, pool.idle) == (0, 1)


@on_uvloop
async def test_informational_responses_and_trailers_are_read_and_dropped() -> None:
    async def answer(peer: H2Peer, asked: Asked) -> None:
        for status in (100, 103):
            peer.head(asked.number, status, (b"link", b"</x>"))
        peer.head(asked.number, 200)
        peer.piece(asked.number, b"body")
        peer.h2.send_headers(asked.number, [(b"checksum", b"1")], end_stream=True)
        peer.flush()

    async with h2_scripted(each(answer)) as server, h2_pool(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert await call.read_all(10) == b"body"
        assert (call.status, call.headers) == (200, [])


@pytest.mark.parametrize("status", [204, 304, 200])
@on_uvloop
async def test_a_response_without_a_body_is_complete(status: int) -> None:
    async def answer(peer: H2Peer, asked: Asked) -> None:
        fields = [(b"content-length", b"12")] if status == 304 else []
        peer.head(asked.number, status, *fields, end=True)

    async with h2_scripted(each(answer)) as server, h2_pool(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert (call.status, call.complete, call.body) == (status, True, b"")


@on_uvloop
async def test_a_large_body_begins_before_it_is_whole() -> None:
    body = bytes(range(256)) * 8192

    async def answer(peer: H2Peer, asked: Asked) -> None:
        peer.head(asked.number, 200, (b"content-length", b"%d" % len(body)))
        await peer.pour(asked.number, body)

    async with h2_scripted(each(answer)) as server, h2_pool(server.url) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        assert not call.complete
        assert call.content_length == len(body) > WHOLE_BYTES
        assert await call.read_all(len(body)) == body
        call = await pool.call(*request(), TIMEOUTS)
        with pytest.raises(BodyTooLarge):
            await call.read_all(len(body) - 1)
        assert pool.active == 0


# -- flow control ----------------------------------------------------------------------------------


@on_uvloop
async def test_a_paused_call_holds_no_more_than_a_window_and_others_go_on() -> None:
    async def answer(peer: H2Peer, asked: Asked) -> None:
        if asked.body == b"flood":
            peer.head(asked.number)
            while asked.reset is None:
                await until(lambda: peer.window(asked.number) > 0 or asked.reset is not None)
                if asked.reset is None:
                    peer.piece(asked.number, b"x" * peer.window(asked.number))
                await asyncio.sleep(0)
        else:
            await echo(peer, asked)

    async with h2_scripted(each(answer)) as server, h2_pool(server.url) as pool:
        call = await pool.call(*request(b"flood"), TIMEOUTS)
        sink = Recorder()
        call.attach(sink)
        call.pause()
        call.pause()
        before = len(sink.data)
        await until(lambda: server.peers[0].window(1) == 0)
        # many windows' worth for another stream of the same connection
        for _ in range(8):
            assert (await pool.call(*request(b"y" * WHOLE_BYTES), TIMEOUTS)).body == b"y" * WHOLE_BYTES
        assert len(sink.data) == before
        assert server.peers[0].window(1) == 0
        (stream,) = pool._active
        assert sum(map(len, stream._exchange.pieces)) <= WINDOW_BYTES
        call.resume()
        call.resume()
        await until(lambda: len(sink.data) > before + 4 * WINDOW_BYTES)
        call.abort()
        assert pool.active == 0
        await until(lambda: server.peers[0].asked[1].reset == ErrorCodes.CANCEL)
        assert len(server.peers) == 1


@on_uvloop
async def test_without_a_sink_no_more_than_a_window_is_held() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.head(1)
        peer.piece(1, b"small")
        call = await calling
        pouring = asyncio.ensure_future(peer.pour(1, b"x" * (4 * WINDOW_BYTES)))
        await until(lambda: peer.window(1) == 0)
        (stream,) = pool._active
        assert (
            len(call.body) + call._held_bytes + sum(map(len, stream._exchange.pieces)) <= WINDOW_BYTES + 32768
        )
        assert len(await call.read_all(1 << 20)) == 5 + 4 * WINDOW_BYTES
        await pouring


@on_uvloop
async def test_what_ended_while_it_was_paused_is_told_when_it_is_resumed() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.head(1)
        peer.piece(1, b"a")
        call = await calling
        sink = Recorder()
        call.attach(sink)
        call.pause()
        peer.piece(1, b"b", end=True)
        await until(lambda: pool.idle == 1)
        assert (sink.data, sink.settled, pool.active) == (b"a", False, 1)
        call.resume()
        await until(lambda: sink.settled)
        assert (sink.data, sink.ended, pool.active) == (b"ab", 1, 0)


@pytest.mark.parametrize("window", [1, 100])
@on_uvloop
async def test_an_upload_goes_through_a_tiny_window(window: int) -> None:
    body = bytes(range(256)) * (2 if window == 1 else 40)
    async with (
        h2_scripted(each(echo), initial_window_size=window) as server,
        h2_pool(server.url) as pool,
    ):
        call = await pool.call(*request(body), TIMEOUTS)
        assert call.body == body
        assert len(server.peers) == 1


@on_uvloop
async def test_an_upload_that_waits_for_its_window_delays_no_other() -> None:
    body = b"l" * 5000
    async with (
        h2_scripted(silent, acknowledges=False, initial_window_size=1000) as server,
        h2_pool(server.url) as pool,
    ):
        long = asyncio.ensure_future(pool.call(*request(body), TIMEOUTS))
        await until(lambda: server.asked == 1)
        short = asyncio.ensure_future(pool.call(*request(b"short"), TIMEOUTS))
        peer = server.peers[0]
        await until(lambda: server.asked == 2 and peer.asked[3].whole)
        peer.reply(3, b"quick")
        assert ((await short).body, len(peer.asked[1].body)) == (b"quick", 1000)
        peer.h2.increment_flow_control_window(4000, 1)
        peer.flush()
        await until(lambda: peer.asked[1].whole)
        assert peer.asked[1].body == body
        peer.reply(1)
        assert (await long).complete


@on_uvloop
async def test_an_upload_waits_for_a_server_that_gives_no_window() -> None:
    async with (
        h2_scripted(silent, acknowledges=False, initial_window_size=10) as server,
        h2_pool(server.url) as pool,
    ):
        calling = asyncio.ensure_future(pool.call(*request(b"0123456789abcdef"), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        await until(lambda: peer.asked[1].body)
        assert len(peer.asked[1].body) == 10
        peer.h2.increment_flow_control_window(3, 1)
        peer.flush()
        await until(lambda: len(peer.asked[1].body) == 13)
        peer.h2.update_settings({4: 100})
        peer.flush()
        await until(lambda: peer.asked[1].whole)
        assert peer.asked[1].body == b"0123456789abcdef"
        peer.reply(1)
        assert (await calling).body == b"ok"


@on_uvloop
async def test_an_answer_before_the_request_was_read_is_taken_and_the_rest_is_not_sent() -> None:
    async with h2_scripted(silent, acknowledges=False) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(b"x" * (1 << 20)), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.reply(1, b"too much", 413)
        call = await calling
        assert (call.status, call.body, pool.active, pool.idle) == (413, b"too much", 0, 1)
        await until(lambda: peer.asked[1].reset == ErrorCodes.NO_ERROR)
        again = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 2)
        peer.reply(3)
        assert (await again).reused


# -- going away ------------------------------------------------------------------------------------


@on_uvloop
async def test_goaway_in_flight_spares_what_has_begun_and_says_what_is_safe_to_send_again() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calls = [asyncio.ensure_future(pool.call(*request(b"%d" % n), TIMEOUTS)) for n in range(4)]
        await until(lambda: server.asked == 4)
        peer = server.peers[0]
        peer.head(1)
        peer.piece(1, b"begun")
        first = await calls[0]
        sink = Recorder()
        first.attach(sink)
        peer.goaway(3)
        for refused in calls[2:]:
            with pytest.raises(UpstreamFault) as caught:
                await refused
            assert (caught.value.kind, caught.value.stale) == (FaultKind.CLOSED, True)
            assert "NO_ERROR" in caught.value.detail
        # what begins now begins elsewhere
        later = asyncio.ensure_future(pool.call(*request(b"later"), TIMEOUTS))
        await until(lambda: len(server.peers) == 2 and server.peers[1].asked)
        server.peers[1].reply(1, b"new")
        assert (await later).body == b"new"
        # and the others end in peace
        peer.reply(3, b"second")
        assert (await calls[1]).body == b"second"
        assert (pool.active, pool.connections, server.open) == (1, 2, 2)
        peer.piece(1, b" and ended", end=True)
        await until(lambda: sink.settled)
        assert (sink.data, sink.ended) == (b"begun and ended", 1)
        await until(lambda: server.open == 1)
        assert pool.connections == 1


@on_uvloop
async def test_a_request_may_still_be_sent_to_its_end_after_goaway() -> None:
    async with (
        h2_scripted(silent, acknowledges=False, initial_window_size=4) as server,
        h2_pool(server.url) as pool,
    ):
        calling = asyncio.ensure_future(pool.call(*request(b"12345678"), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.goaway((1 << 31) - 1)
        peer.goaway(1)
        peer.h2.increment_flow_control_window(4, 1)
        peer.flush()
        await until(lambda: peer.asked[1].whole)
        peer.reply(1, b"done")
        assert (await calling).body == b"done"
        await until(lambda: server.open == 0)
        assert pool.connections == 0


@on_uvloop
async def test_a_refused_stream_is_safe_to_send_again_and_its_connection_stays() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        server.peers[0].h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
        server.peers[0].flush()
        with pytest.raises(UpstreamFault) as caught:
            await calling
        assert caught.value.stale
        assert (pool.active, pool.idle, pool.connections) == (0, 1, 1)


@on_uvloop
async def test_idle_connections_say_goodbye_when_their_time_has_come() -> None:
    clock = Clock()
    async with (
        h2_scripted(each(echo)) as server,
        h2_pool(server.url, clock=clock, min_connections=2, max_connections=5, max_streams=1) as pool,
    ):
        await asyncio.gather(*[pool.call(*request(), TIMEOUTS) for _ in range(5)])
        opened = pool.connections
        assert 2 <= opened <= 5
        clock.now += 1.1
        pool.tick(clock.now)
        assert pool.connections == 2
        clock.now += 3
        pool.tick(clock.now)
        assert pool.connections == 0
        await until(lambda: server.open == 0)
        for peer in server.peers:
            assert any(isinstance(event, ConnectionTerminated) for event in peer.events)


@on_uvloop
async def test_fresh_trusts_no_idle_connection() -> None:
    async with h2_scripted(each(echo)) as server, h2_pool(server.url) as pool:
        await pool.call(*request(), TIMEOUTS)
        call = await pool.call(*request(), TIMEOUTS, fresh=True)
        assert (call.reused, len(server.peers), pool.connections) == (False, 2, 1)


# -- cancelling ------------------------------------------------------------------------------------


@on_uvloop
async def test_three_thousand_quick_cancels_break_nothing_and_leave_nothing() -> None:
    async def answer(peer: H2Peer, asked: Asked) -> None:
        await asyncio.sleep(0)
        if asked.body == b"stay":
            await asyncio.sleep(0)
        await echo(peer, asked)

    async with h2_scripted(each(answer)) as server, h2_pool(server.url, max_connections=1) as pool:
        await pool.call(*request(), TIMEOUTS)
        for number in range(30):
            calls = [asyncio.ensure_future(pool.call(*request(), TIMEOUTS)) for _ in range(100)]
            for _ in range(number % 4):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert pool.active == 0
        assert (await pool.call(*request(b"stay"), TIMEOUTS)).body == b"stay"
        assert (len(server.peers), pool.connections, pool.idle) == (1, 1, 1)
        connection = pool._connections[0]
        assert not connection.session.exchanges
        assert not connection.session._uploads


@on_uvloop
async def test_cancelling_while_connecting_leaves_nothing() -> None:
    async with h2_scripted(silent, greet=False) as server:
        before = open_sockets()
        async with h2_pool(server.url) as pool:
            calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
            await until(lambda: server.open == 1)
            assert pool.active == 1
            calling.cancel()
            await asyncio.wait([calling])
            assert pool.active == 0
            await until(lambda: server.open == 0 and open_sockets() <= before)


@on_uvloop
async def test_an_aborted_stream_is_reset_and_its_sink_hears_nothing() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.head(1)
        peer.piece(1, b"a")
        call = await calling
        sink = Recorder()
        call.attach(sink)
        call.abort()
        call.abort()
        call.pause()
        call.resume()
        # in flight while the reset is on its way
        peer.piece(1, b"b")
        await until(lambda: peer.asked[1].reset == ErrorCodes.CANCEL)
        assert (sink.data, sink.settled, pool.active, pool.idle) == (b"a", False, 0, 1)
        again = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 2)
        peer.reply(3)
        assert (await again).body == b"ok"


# -- faults ----------------------------------------------------------------------------------------


async def fault_of(pool, server, act) -> UpstreamFault:  # type: ignore[no-untyped-def]
    """What a call fails with on whose request the server does ``act(peer)``."""
    calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
    before = server.asked
    await until(lambda: server.asked == before + 1)
    act(server.peers[-1])
    with pytest.raises(UpstreamFault) as caught:
        await calling
    assert pool.active == 0
    fault: UpstreamFault = caught.value
    return fault


STREAM_FAULTS = {
    "reset": (lambda p: p.raw(3, 0, 1, b"\0\0\0\x02"), FaultKind.CLOSED),
    "asks for another protocol": (lambda p: p.raw(3, 0, 1, b"\0\0\0\x0d"), FaultKind.PROTOCOL),
    "an unknown reset": (lambda p: p.raw(3, 0, 1, b"\0\0\x02\x02"), FaultKind.CLOSED),
    "no status": (lambda p: p.h2.send_headers(1, [(b"x", b"y")]), FaultKind.PROTOCOL),
    "status 700": (lambda p: p.head(1, 700), FaultKind.PROTOCOL),
    "status 101": (lambda p: p.head(1, 101), FaultKind.PROTOCOL),
    "upper case": (lambda p: p.head(1, 200, (b"X-A", b"y")), FaultKind.PROTOCOL),
    "a line end": (lambda p: p.head(1, 200, (b"x", b"y\r\nset-cookie: z")), FaultKind.PROTOCOL),
    "about the connection": (lambda p: p.head(1, 200, (b"connection", b"close")), FaultKind.PROTOCOL),
    "transfer coding": (lambda p: p.head(1, 200, (b"transfer-encoding", b"chunked")), FaultKind.PROTOCOL),
    "length no number": (lambda p: p.head(1, 200, (b"content-length", b"-1")), FaultKind.PROTOCOL),
    "two lengths": (
        lambda p: p.head(1, 200, (b"content-length", b"1"), (b"content-length", b"2")),
        FaultKind.PROTOCOL,
    ),
    "longer than said": (
        lambda p: (p.head(1, 200, (b"content-length", b"1")), p.piece(1, b"22")),
        FaultKind.PROTOCOL,
    ),
    "shorter than said": (
        lambda p: (p.head(1, 200, (b"content-length", b"9")), p.piece(1, b"22", end=True)),
        FaultKind.CLOSED,
    ),
    "nothing of what was said": (
        lambda p: p.head(1, 200, (b"content-length", b"9"), end=True),
        FaultKind.CLOSED,
    ),
    "many fields": (lambda p: p.head(1, 200, *[(b"x%d" % n, b"y") for n in range(200)]), FaultKind.TOO_LARGE),
    "a large head": (
        lambda p: p.head(1, 200, *[(b"x%d" % n, b"y" * 1000) for n in range(100)]),
        FaultKind.TOO_LARGE,
    ),
    "17 informational": (lambda p: [p.head(1, 100) for _ in range(17)], FaultKind.PROTOCOL),
}


@pytest.mark.parametrize("what", STREAM_FAULTS)
@on_uvloop
async def test_what_is_wrong_with_a_response_costs_its_stream_alone(what: str) -> None:
    act, kind = STREAM_FAULTS[what]
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:

        def and_flush(peer: H2Peer) -> None:
            act(peer)
            peer.flush()

        fault = await fault_of(pool, server, and_flush)
        assert (fault.kind, fault.stale) == (kind, False)
        again = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 2)
        server.peers[0].reply(3)
        assert (await again).body == b"ok"
        assert len(server.peers) == 1


def _headers_flood(peer: H2Peer) -> None:
    peer.raw(1, 0, 1, b"")
    for _ in range(100):
        peer.raw(9, 0, 1, b"")


CONNECTION_FAULTS = {
    "garbage": (lambda p: p.writer.write(b"\0" * 40 + b"HTTP/1.1 200 OK\r\n\r\n"), FaultKind.PROTOCOL),
    "a frame too long": (lambda p: p.writer.write(b"\x00\x40\x01\0\0\0\0\0\x01"), FaultKind.PROTOCOL),
    "pings without end": (
        lambda p: p.writer.write(frame(6, 0, 0, b"12345678") * 20_000),
        FaultKind.TOO_LARGE,
    ),
    "settings without end": (lambda p: p.writer.write(frame(4, 0, 0) * 40_000), FaultKind.TOO_LARGE),
    "empty data without end": (
        lambda p: (p.head(1), p.writer.write(frame(0, 0, 1) * 40_000)),
        FaultKind.TOO_LARGE,
    ),
    "unknown frames without end": (
        lambda p: p.writer.write(frame(200, 0, 0, b"x" * 16000) * 20),
        FaultKind.TOO_LARGE,
    ),
    "continuations without end": (_headers_flood, FaultKind.PROTOCOL),
    "a head without bound": (
        lambda p: (
            p.raw(1, 0, 1, b"\0\x01x\x7f\x81\x7f" + b"y" * 16000),
            [p.raw(9, 0, 1, b"\0\x01x\x7f\x81\x7f" + b"y" * 16000) for _ in range(60)],
        ),
        FaultKind.TOO_LARGE,
    ),
    "a push": (lambda p: p.raw(5, 4, 1, b"\0\0\0\x02\x82"), FaultKind.PROTOCOL),
    "a window too wide": (
        lambda p: p.writer.write(frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2),
        FaultKind.PROTOCOL,
    ),
    "a GOAWAY cut short": (lambda p: p.raw(7, 0, 0, b"abc"), FaultKind.PROTOCOL),
    "closed": (lambda p: p.writer.close(), FaultKind.CLOSED),
    "aborted": (lambda p: p.writer.transport.abort(), FaultKind.CLOSED),
}


@pytest.mark.parametrize("what", CONNECTION_FAULTS)
@on_uvloop
async def test_what_is_wrong_with_a_connection_fails_its_calls_and_closes_it(what: str) -> None:
    act, kind = CONNECTION_FAULTS[what]
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        fault = await fault_of(pool, server, act)
        assert (fault.kind, fault.stale) == (kind, False)
        assert pool.connections == 0
        await until(lambda: server.open == 0)
        again = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: len(server.peers) == 2 and server.asked == 2)
        server.peers[1].reply(1)
        assert (await again).body == b"ok"


@on_uvloop
async def test_garbage_in_mid_stream_comes_after_what_was_good() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        peer.head(1)
        peer.piece(1, b"a")
        sink = Recorder()
        (await calling).attach(sink)
        peer.h2.send_data(1, b"b")
        peer.writer.write(peer.h2.data_to_send() + frame(1, 0, 1) + frame(6, 0, 0, b"12345678"))
        await until(lambda: sink.settled)
        assert sink.data == b"ab"
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.PROTOCOL
        assert sink.fault.got_bytes


@on_uvloop
async def test_a_stale_keep_alive_connection_is_recognised() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        first = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        server.peers[0].reply(1)
        await first
        fault = await fault_of(pool, server, lambda peer: peer.writer.transport.abort())
        assert (fault.kind, fault.reused, fault.stale) == (FaultKind.CLOSED, True, True)


@on_uvloop
async def test_a_connection_that_was_heard_of_is_not_stale() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        first = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        server.peers[0].reply(1)
        await first

        def ping_and_leave(peer: H2Peer) -> None:
            peer.writer.write(frame(6, 0, 0, b"12345678"))
            peer.writer.close()

        fault = await fault_of(pool, server, ping_and_leave)
        assert (fault.kind, fault.stale) == (FaultKind.CLOSED, False)


@on_uvloop
async def test_a_server_of_another_protocol_is_a_failed_connect() -> None:
    async def http1(peer: object) -> None:
        await peer.reader.read(10)  # type: ignore[attr-defined]
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # type: ignore[attr-defined]

    async with scripted(http1) as server, h2_pool(server.url, min_connections=3) as pool:  # type: ignore[arg-type]
        faults = await asyncio.gather(
            *[pool.call(*request(), TIMEOUTS) for _ in range(20)], return_exceptions=True
        )
        for fault in faults:
            assert isinstance(fault, UpstreamFault)
            assert fault.kind is FaultKind.CONNECT_FAILED
            assert "does not speak HTTP/2" in fault.detail
        assert server.connections <= 3


@on_uvloop
async def test_a_server_that_does_not_greet_is_a_connect_timeout() -> None:
    async with h2_scripted(silent, greet=False) as server, h2_pool(server.url) as pool:
        with pytest.raises(UpstreamFault) as caught:
            await pool.call(*request(), CallTimeouts(connect_s=0.05))
        assert caught.value.kind is FaultKind.CONNECT_TIMEOUT
        await until(lambda: server.open == 0)


@on_uvloop
async def test_nobody_listening_fails_all_who_wait() -> None:
    async with h2_scripted(silent) as server:
        url = server.url
    async with h2_pool(url, min_connections=3) as pool:
        results = await asyncio.gather(
            *[pool.call(*request(), TIMEOUTS) for _ in range(20)], return_exceptions=True
        )
        assert {fault.kind for fault in results if isinstance(fault, UpstreamFault)} == {
            FaultKind.CONNECT_FAILED
        }
        assert len(results) == 20


# -- deadlines -------------------------------------------------------------------------------------


@on_uvloop
async def test_the_first_byte_and_the_time_between_chunks_have_their_deadlines() -> None:
    clock = Clock()
    timeouts = CallTimeouts(first_byte_s=5, between_chunks_s=3)
    async with h2_scripted(silent) as server, h2_pool(server.url, clock=clock) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), timeouts))
        await until(lambda: server.asked == 1)
        clock.now += 5
        pool.tick(clock.now)
        with pytest.raises(UpstreamFault) as caught:
            await calling
        assert (caught.value.kind, caught.value.got_bytes) == (FaultKind.FIRST_BYTE_TIMEOUT, False)
        peer = server.peers[0]
        await until(lambda: peer.asked[1].reset == ErrorCodes.CANCEL)
        calling = asyncio.ensure_future(pool.call(*request(), timeouts))
        await until(lambda: server.asked == 2)
        peer.head(3)
        peer.piece(3, b"a")
        sink = Recorder()
        call = await calling
        call.attach(sink)
        clock.now += 2
        pool.tick(clock.now)
        peer.piece(3, b"b")
        await until(lambda: sink.data == b"ab")
        call.pause()
        clock.now += 100
        pool.tick(clock.now)
        call.resume()
        clock.now += 2.9
        pool.tick(clock.now)
        assert not sink.settled
        clock.now += 0.1
        pool.tick(clock.now)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.BETWEEN_CHUNKS_TIMEOUT
        assert (pool.active, pool.connections) == (0, 1)


@on_uvloop
async def test_the_total_deadline_runs_from_where_the_caller_says_and_while_paused() -> None:
    clock = Clock()
    async with h2_scripted(silent) as server, h2_pool(server.url, clock=clock) as pool:
        calling = asyncio.ensure_future(
            pool.call(*request(), CallTimeouts(total_s=10), total_started=clock.now - 4)
        )
        await until(lambda: server.asked == 1)
        server.peers[0].head(1)
        server.peers[0].piece(1, b"a")
        call = await calling
        sink = Recorder()
        call.attach(sink)
        call.pause()
        clock.now += 6
        pool.tick(clock.now)
        assert sink.fault is not None
        assert sink.fault.kind is FaultKind.TOTAL_TIMEOUT


@pytest.mark.parametrize("answers", [True, False])
@on_uvloop
async def test_a_silent_server_is_asked_whether_it_is_there(answers: bool) -> None:
    clock = Clock()
    timeouts = CallTimeouts(first_byte_s=0)
    async with h2_scripted(silent) as server, h2_pool(server.url, clock=clock) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), timeouts))
        await until(lambda: server.asked == 1)
        peer = server.peers[0]
        pool.tick(clock.now)
        if not answers:
            peer.flush = lambda: None  # type: ignore[method-assign]
        clock.now += PING_AFTER_S
        pool.tick(clock.now)
        await until(lambda: any(isinstance(event, PingReceived) for event in peer.events))
        if answers:
            await until(
                lambda: pool._connections[0]._pinged_at is not None and pool._connections[0]._read > 1
            )
        clock.now += PING_ANSWER_S
        pool.tick(clock.now)
        if answers:
            peer.reply(1)
            assert (await calling).complete
        else:
            with pytest.raises(UpstreamFault) as caught:
                await calling
            assert (caught.value.kind, caught.value.detail) == (
                FaultKind.CLOSED,
                "the server does not answer a PING",
            )
            assert pool.connections == 0


@on_uvloop
async def test_a_ping_is_answered() -> None:
    from h2.events import PingAckReceived

    async with h2_scripted(each(echo)) as server, h2_pool(server.url) as pool:
        await pool.call(*request(), TIMEOUTS)
        peer = server.peers[0]
        peer.h2.ping(b"12345678")
        peer.flush()
        await until(lambda: any(isinstance(event, PingAckReceived) for event in peer.events))


# -- closing ---------------------------------------------------------------------------------------


@on_uvloop
async def test_closing_waits_for_calls_in_progress_and_drops_those_that_outlast_its_grace() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        sinks = [Recorder(), Recorder()]
        for number, sink in enumerate(sinks):
            calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
            await until(lambda number=number: server.asked == number + 1)
            peer = server.peers[-1]
            stream = list(peer.asked)[-1]
            peer.head(stream)
            peer.piece(stream, b"a")
            (await calling).attach(sink)
            if number == 0:
                closing = asyncio.ensure_future(pool.close(20))
                await asyncio.sleep(0)
                assert not closing.done()
                peer.piece(stream, b"b", end=True)
                await closing
                assert (sink.data, sink.ended, pool.connections) == (b"ab", 1, 0)
        # the second began on a pool that was closed, and worked
        await pool.close(0.01)
        assert sinks[1].fault is not None
        assert sinks[1].fault.kind is FaultKind.CLOSED
        await until(lambda: server.open == 0)


@on_uvloop
async def test_what_calls_and_connections_leave_behind_needs_no_cycle_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        async with h2_scripted(each(echo)) as server, h2_pool(server.url) as pool:
            left: list[weakref.ref[object]] = []
            for _ in range(3):
                call = await pool.call(*request(), TIMEOUTS, fresh=True)
                left += [
                    weakref.ref(pool._connections[0]),
                    weakref.ref(pool._connections[0].session._library),
                ]
                assert call.complete
                del call
            await pool.close()
            await until(lambda: server.open == 0)
            await until(lambda: not [ref() for ref in left if ref() is not None])
    finally:
        gc.enable()


@on_uvloop
async def test_a_server_that_reads_nothing_cannot_make_us_answer_without_bound() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        connection = pool._connections[0]
        connection.pause_writing()
        for _ in range(6):
            connection.session._barren_bytes = 0
            connection.data_received(frame(6, 0, 0, b"12345678") * 5000)
        with pytest.raises(UpstreamFault) as caught:
            await calling
        assert caught.value.kind is FaultKind.PROTOCOL
        assert (pool.active, pool.connections) == (0, 0)


@on_uvloop
async def test_requests_of_one_turn_are_written_together() -> None:
    async with h2_scripted(silent) as server, h2_pool(server.url) as pool:
        first = asyncio.ensure_future(pool.call(*request(), TIMEOUTS))
        await until(lambda: server.asked == 1)
        connection = pool._connections[0]
        real = connection._transport
        writes: list[bytes] = []

        class Counting:
            is_closing = real.is_closing
            abort = real.abort
            close = real.close

            def write(self, data: bytes) -> None:
                writes.append(data)
                real.write(data)

        connection._transport = Counting()  # type: ignore[assignment]
        calls = [asyncio.ensure_future(pool.call(*request(b"x"), TIMEOUTS)) for _ in range(50)]
        await until(lambda: server.asked == 51)
        assert len(writes) <= 4  # the first few at once, the rest in one
        for call in (first, *calls):
            call.cancel()
        await asyncio.wait([first, *calls])
        connection._transport = real


# -- TLS -------------------------------------------------------------------------------------------


def server_context(pem: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@on_uvloop
async def test_over_tls_the_protocol_is_agreed_by_alpn_and_sessions_are_resumed(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "127.0.0.1")
    resumed: list[bool] = []

    async def handler(peer: H2Peer) -> None:
        tls = peer.writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "h2"
        resumed.append(tls.session_reused)
        await each(echo)(peer)

    client = TlsClient(clock=Clock(), ca=str(pem), alpn="h2")
    context = server_context(pem, "http/1.1", "h2")
    async with h2_scripted(handler, tls=context) as server, h2_pool(server.url, tls=client) as pool:
        for _ in range(3):
            assert (await pool.call(*request(b"x"), TIMEOUTS, fresh=True)).body == b"x"
        assert server.peers[0].asked[1].field(b":scheme") == b"https"
    assert resumed == [False, True, True]


@pytest.mark.parametrize("protocols", [("http/1.1",), ()])
@on_uvloop
async def test_a_server_that_does_not_agree_on_http2_is_a_tls_fault(
    tmp_path: Path, protocols: tuple[str, ...]
) -> None:
    pem = certificate(tmp_path, "127.0.0.1")
    client = TlsClient(clock=Clock(), ca=str(pem), alpn="h2")
    context = server_context(pem, *protocols)
    async with h2_scripted(silent, tls=context) as server, h2_pool(server.url, tls=client) as pool:
        with pytest.raises(UpstreamFault) as caught:
            await pool.call(*request(), TIMEOUTS)
        assert caught.value.kind is FaultKind.TLS_FAILED
        assert "ALPN" in caught.value.detail.upper()
        await until(lambda: server.open == 0)
