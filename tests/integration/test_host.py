"""Granian's private worker does what `penstock.workers.host` builds on: a new release that does not fails here."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import granian
import httpx
import pytest

from penstock.workers.host import Host, serve
from penstock.workers.listeners import listen_tcp, listen_unix, refuse_new

from ..support.procs import accepts, wait_until

GET = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"


class _App:
    """Answers at once, or when `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = 0

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        body = await proto()
        if scope.path == "/wait":
            self.waiting += 1
            await self.go.wait()
        if scope.path == "/stream":
            stream = proto.response_stream(200, [("content-type", "text/event-stream")])
            stream.send_bytes(b"data: 1\n\n")
            self.waiting += 1
            await self.go.wait()
            stream.send_bytes(b"data: 2\n\n")
            return
        proto.response_bytes(200, [("x-version", scope.http_version)], body or b"hello")


@pytest.fixture
async def served() -> AsyncIterator[tuple[_App, Host, socket.socket]]:
    app, listener = _App(), listen_tcp("127.0.0.1", 0)
    host = serve(app, [listener], loop=asyncio.get_running_loop(), idle_timeout_s=30)
    yield app, host, listener
    app.go.set()
    listener.close()
    host.stop()
    await host.done


async def _open(
    listener: socket.socket, data: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(data)
    return reader, writer


async def _until(predicate: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, predicate, 20, what)


def test_the_release_of_granian_is_one_that_was_read() -> None:
    assert granian.__version__.startswith("2.8."), "read the new release's worker and adapt workers/host.py"


async def test_requests_are_answered_over_tcp_and_unix_sockets(tmp_path: Path) -> None:
    listeners = [listen_tcp("127.0.0.1", 0), listen_unix(str(tmp_path / "s"))]
    host = serve(_App(), listeners, loop=asyncio.get_running_loop())
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}/"
        assert (await client.post(url, content=b"x" * 100_000)).content == b"x" * 100_000
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(tmp_path / "s"))) as client:
        assert (await client.get("http://t/")).content == b"hello"
    host.stop()
    await host.done
    for listener in listeners:
        listener.close()


async def test_the_callers_socket_stays_open_after_a_stop() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    for _ in range(2):
        host = serve(_App(), [listener], loop=asyncio.get_running_loop())
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert (await client.get(url)).content == b"hello"
        host.stop()
        await host.done
    os.fstat(listener.fileno())
    listener.close()


async def test_a_stop_with_nothing_in_flight_ends_every_time() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    for _ in range(50):
        host = serve(_App(), [listener], loop=asyncio.get_running_loop())
        host.stop()
        await asyncio.wait_for(host.done, 20)
    listener.close()


async def test_what_is_in_flight_finishes_after_a_stop(served: tuple[_App, Host, socket.socket]) -> None:
    app, host, listener = served
    plain, plain_writer = await _open(listener, GET.replace(b"/ ", b"/wait ", 1))
    stream, stream_writer = await _open(listener, GET.replace(b"/ ", b"/stream ", 1))
    await _until(lambda: app.waiting == 2, "both requests")
    host.stop()
    assert not host.done.done()
    app.go.set()
    assert (await plain.read()).endswith(b"hello")
    assert (await stream.read()).endswith(b"data: 2\n\n\r\n0\r\n\r\n")
    await host.done
    plain_writer.close()
    stream_writer.close()


async def test_after_stop_accepting_open_connections_are_served_and_new_ones_wait_for_the_next(
    served: tuple[_App, Host, socket.socket],
) -> None:
    _, host, listener = served
    reader, writer = await _open(listener, GET)
    await reader.readuntil(b"hello")
    host.stop_accepting()
    host.stop_accepting()
    writer.write(GET)
    await reader.readuntil(b"hello")
    later, later_writer = await _open(listener, GET)
    successor = serve(_App(), [listener], loop=asyncio.get_running_loop())
    assert b"hello" in await later.readuntil(b"hello")
    for one in (writer, later_writer):
        one.close()
    successor.stop()
    await successor.done


async def test_a_connection_without_a_request_is_closed_by_its_deadline() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    host = serve(_App(), [listener], loop=asyncio.get_running_loop(), idle_timeout_s=0.3)
    silent, one = await _open(listener)
    half, two = await _open(listener, b"GET / HT")
    idle, three = await _open(listener, GET)
    await idle.readuntil(b"hello")
    for reader in (silent, half, idle):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    for writer in (one, two, three):
        writer.close()
    host.stop()
    await host.done
    listener.close()


async def test_a_refusing_listener_still_serves_what_is_in_its_queue() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    address = listener.getsockname()
    early = socket.create_connection(address)
    early.sendall(GET)
    refuse_new([listener])
    assert not await asyncio.to_thread(accepts, *address)
    host = serve(_App(), [listener], loop=asyncio.get_running_loop())
    reader, writer = await asyncio.open_connection(sock=early)
    assert b"hello" in await reader.readuntil(b"hello")
    writer.close()
    host.stop()
    await host.done
    listener.close()


async def test_http_2_is_spoken_when_asked_for() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    host = serve(_App(), [listener], loop=asyncio.get_running_loop(), http="auto")
    for versions, expected in (({"http2": True, "http1": False}, "2"), ({"http1": True}, "1.1")):
        async with httpx.AsyncClient(trust_env=False, **versions) as client:
            answer = await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            assert answer.headers["x-version"] == expected
    host.stop()
    await host.done
    listener.close()


async def test_tls_is_served_with_the_given_certificate(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path)
    listener = listen_tcp("127.0.0.1", 0)
    host = serve(_App(), [listener], loop=asyncio.get_running_loop(), tls=(cert, key))
    async with httpx.AsyncClient(trust_env=False, verify=ssl.create_default_context(cafile=cert)) as client:
        assert (await client.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")).content == b"hello"
    host.stop()
    await host.done
    listener.close()


def _certificate(folder: Path) -> tuple[str, str]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(private, hashes.SHA256())
    )
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(cert), str(key)
