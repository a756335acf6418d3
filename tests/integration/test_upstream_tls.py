"""TLS towards a backend: sessions the server sees resumed, verification, and what a broken handshake becomes."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.gateway.upstream.call import CallTimeouts
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault
from penstock.gateway.upstream.tls import TlsClient
from tests.support.scripted import (
    CHUNKED,
    TIMEOUTS,
    Clock,
    Peer,
    Recorder,
    chunk,
    on_uvloop,
    open_sockets,
    pool_for,
    reply,
    request,
    scripted,
    until,
)


def server_context(pem: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.scripted import certificate

    return certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1", "backend.test")


def keep_sessions(resumed: list[bool]) -> Callable[[Peer], "asyncio.Future[None]"]:
    """Answer, and note of each connection whether its session was resumed."""

    async def handler(peer: Peer) -> None:
        ssl_object = peer.writer.get_extra_info("ssl_object")
        resumed.append(ssl_object.session_reused)
        assert ssl_object.selected_alpn_protocol() == "http/1.1"
        while True:
            _, body = await peer.request()
            await peer.send(reply(body))

    return handler  # type: ignore[return-value]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@on_uvloop
async def test_the_server_sees_resumed_sessions(pem: Path, version: ssl.TLSVersion) -> None:
    resumed: list[bool] = []
    clock = Clock()
    tls = TlsClient(clock=clock, ca=str(pem))
    context = server_context(pem, version)
    async with scripted(keep_sessions(resumed), tls=context) as server:  # noqa: SIM117 - reads better apart
        async with pool_for(server.url, clock=clock, tls=tls) as pool:
            for number in range(4):
                call = await pool.call(*request(b"%d" % number), TIMEOUTS, fresh=True)
                assert call.body == b"%d" % number
    assert resumed == [False, True, True, True]


@on_uvloop
async def test_a_session_is_offered_for_its_time_only(pem: Path) -> None:
    resumed: list[bool] = []
    clock = Clock()
    tls = TlsClient(clock=clock, ca=str(pem), session_s=3600)
    async with scripted(keep_sessions(resumed), tls=server_context(pem)) as server:  # noqa: SIM117
        async with pool_for(server.url, clock=clock, tls=tls) as pool:
            await pool.call(*request(), TIMEOUTS, fresh=True)
            clock.now += 3600
            await pool.call(*request(), TIMEOUTS, fresh=True)
            await pool.call(*request(), TIMEOUTS, fresh=True)
    assert resumed == [False, False, True]


@on_uvloop
async def test_a_connection_is_used_again_over_tls_too(pem: Path) -> None:
    resumed: list[bool] = []
    tls = TlsClient(clock=Clock(), ca=str(pem))
    async with (
        scripted(keep_sessions(resumed), tls=server_context(pem)) as server,
        pool_for(server.url, tls=tls) as pool,
    ):
        for number in range(3):
            call = await pool.call(*request(b"x" * 100_000), TIMEOUTS)
            assert call.reused is (number > 0)
            assert await call.read_all(100_000) == b"x" * 100_000
        assert resumed == [False]


@on_uvloop
async def test_another_name_can_be_asked_for_and_verified(pem: Path) -> None:
    names: list[str | None] = []
    context = server_context(pem)

    def note(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        names.append(name)

    context.sni_callback = note
    tls = TlsClient(clock=Clock(), ca=str(pem), server_name="backend.test")
    async with scripted(keep_sessions([]), tls=context) as server, pool_for(server.url, tls=tls) as pool:
        assert (await pool.call(*request(b"x"), TIMEOUTS)).body == b"x"
    assert names == ["backend.test"]


@pytest.mark.parametrize("why", ["unknown authority", "another name"])
@on_uvloop
async def test_a_certificate_that_does_not_verify_is_a_tls_fault(pem: Path, why: str) -> None:
    if why == "unknown authority":
        tls = TlsClient(clock=Clock())
    else:
        tls = TlsClient(clock=Clock(), ca=str(pem), server_name="other.test")
    async with (
        scripted(keep_sessions([]), tls=server_context(pem)) as server,
        pool_for(server.url, tls=tls) as pool,
    ):
        with pytest.raises(UpstreamFault) as caught:
            await pool.call(*request(), TIMEOUTS)
        assert (caught.value.kind, caught.value.got_bytes) == (FaultKind.TLS_FAILED, False)
        assert pool.active == 0


@on_uvloop
async def test_verification_can_be_turned_off(pem: Path) -> None:
    tls = TlsClient(clock=Clock(), insecure=True)
    async with (
        scripted(keep_sessions([]), tls=server_context(pem)) as server,
        pool_for(server.url, tls=tls) as pool,
    ):
        assert (await pool.call(*request(b"x"), TIMEOUTS)).body == b"x"


@on_uvloop
async def test_a_server_that_speaks_no_tls_is_a_tls_fault(pem: Path) -> None:
    async def handler(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    tls = TlsClient(clock=Clock(), ca=str(pem))
    before = open_sockets()
    async with scripted(handler) as server:
        async with pool_for(server.url.replace("http:", "https:"), tls=tls) as pool:
            with pytest.raises(UpstreamFault) as caught:
                await pool.call(*request(), TIMEOUTS)
            assert caught.value.kind is FaultKind.TLS_FAILED
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() <= before)


@pytest.mark.parametrize("how", ["cancelled", "late"])
@on_uvloop
async def test_a_handshake_that_never_ends_leaves_nothing(pem: Path, how: str) -> None:
    tls = TlsClient(clock=Clock(), ca=str(pem))
    timeouts = CallTimeouts(connect_s=0.1 if how == "late" else 20)

    async def handler(peer: Peer) -> None:
        await peer.forever()

    before = open_sockets()
    async with scripted(handler) as server, pool_for(server.url.replace("http:", "https:"), tls=tls) as pool:
        calling = asyncio.ensure_future(pool.call(*request(), timeouts))
        await until(lambda: server.connections == 1)
        if how == "cancelled":
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        else:
            with pytest.raises(UpstreamFault) as caught:
                await calling
            assert caught.value.kind is FaultKind.CONNECT_TIMEOUT
        assert pool.active == 0
        await until(lambda: server.open == 0)
    await until(lambda: open_sockets() <= before)


@on_uvloop
async def test_a_close_delimited_body_cut_without_a_goodbye_is_not_complete(pem: Path) -> None:
    cut = asyncio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await cut.wait()
        if peer.number == 0:
            peer.reset()  # TCP ends, TLS says nothing

    tls = TlsClient(clock=Clock(), ca=str(pem))
    async with scripted(handler, tls=server_context(pem)) as server, pool_for(server.url, tls=tls) as pool:
        sinks = [Recorder(), Recorder()]
        for sink in sinks:
            (await pool.call(*request(), TIMEOUTS)).attach(sink)
        cut.set()
        await until(lambda: all(sink.settled for sink in sinks))
        assert sinks[0].fault is not None
        assert sinks[0].fault.kind is FaultKind.CLOSED
        assert (sinks[1].data, sinks[1].ended) == (b"some", 1)
        assert pool.active == 0


@on_uvloop
async def test_without_a_sink_no_more_than_256_kib_are_held_over_tls(pem: Path) -> None:
    sent = 0

    async def handler(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(CHUNKED)
        block = chunk(b"x" * 65536)
        while True:
            await peer.send(block)
            sent += 1

    tls = TlsClient(clock=Clock(), ca=str(pem))
    async with scripted(handler, tls=server_context(pem)) as server, pool_for(server.url, tls=tls) as pool:
        call = await pool.call(*request(), TIMEOUTS)
        last = -1
        while sent != last:
            last = sent
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert len(call.body) + call._held_bytes <= 256 * 1024
        sink = Recorder()
        call.attach(sink)
        await until(lambda: len(sink.data) > 4 * 1024 * 1024)
        call.abort()
        await until(lambda: server.open == 0)
