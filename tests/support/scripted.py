"""A server that does exactly what a test says, byte by byte, in the test's own loop; and what goes with
it.
"""

import asyncio
import contextlib
import datetime
import functools
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from penstock.gateway.upstream.call import CallTimeouts
from penstock.gateway.upstream.connector import Connector
from penstock.gateway.upstream.dns import Resolver
from penstock.gateway.upstream.fault import UpstreamFault
from penstock.gateway.upstream.origin import Origin
from penstock.gateway.upstream.pool import Pool
from penstock.gateway.upstream.tls import TlsClient

WATCHDOG_S = 20.0

Handler = Callable[["Peer"], Awaitable[None]]


Parameters = ParamSpec("Parameters")


def on_uvloop(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    """Run a test on the loop that workers run on."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


class Clock:
    """A clock that stands until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Peer:
    """The server's end of one connection. ``number`` counts connections from 0."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> tuple[bytes, bytes]:
        """Read one request: its head and its body. Raises asyncio.IncompleteReadError at the end."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return head, await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        await asyncio.sleep(0)  # draining does not always give the loop a turn

    def reset(self) -> None:
        """Close with RST."""
        self.writer.transport.abort()

    async def forever(self) -> None:
        """Until the client closes, or the server ends."""
        while await self.reader.read(65536):
            pass


@dataclass
class Server:
    """A listening scripted server."""

    url: str
    peers: list[Peer] = field(default_factory=list)
    open: int = 0

    @property
    def connections(self) -> int:
        return len(self.peers)


@contextlib.asynccontextmanager
async def scripted(
    handler: Handler, *, tls: ssl.SSLContext | None = None, uds: Path | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    """Serve each connection with ``handler``; the connection is closed when it returns."""
    tasks: set[asyncio.Task[None]] = set()
    server = Server("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(len(server.peers), reader, writer)
        server.peers.append(peer)
        server.open += 1
        try:
            await handler(peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            server.open -= 1
            writer.close()
            tasks.discard(task)

    if uds is not None:
        listening = await asyncio.start_unix_server(serve, str(uds))
        server.url = f"unix://{uds}"
    else:
        listening = await asyncio.start_server(serve, host, 0, ssl=tls)
        port = listening.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        server.url = f"{'https' if tls else 'http'}://{shown}:{port}"
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        for peer in server.peers:
            peer.writer.transport.abort()
        await until(lambda: not tasks)


@contextlib.asynccontextmanager
async def pool_for(
    url: str,
    *,
    clock: Callable[[], float] | None = None,
    tls: TlsClient | None = None,
    min_idle: int = 0,
    max_idle: int = 50,
    idle_s: float = 4.0,
) -> AsyncIterator[Pool]:
    """A pool for ``url`` that must be empty once it is closed."""
    loop = asyncio.get_running_loop()
    clock = clock or loop.time
    resolver = Resolver(loop=loop, clock=clock, ttl_s=300)
    connector = Connector(loop=loop, clock=clock, resolver=resolver, tls=tls)
    pool = Pool(
        Origin.parse(url),
        loop=loop,
        clock=clock,
        connector=connector,
        min_idle=min_idle,
        max_idle=max_idle,
        idle_s=idle_s,
    )
    try:
        yield pool
    finally:
        await pool.close()
        assert (pool.active, pool.idle) == (0, 0)
        assert pool._outbox.calls == 0


TIMEOUTS = CallTimeouts(connect_s=5, first_byte_s=60, between_chunks_s=30, total_s=0)


def request(body: bytes = b"", method: str = "POST", path: str = "/v1/x") -> tuple[bytes, bytes | None]:
    """A request's head and body."""
    head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode(), body or None


def reply(body: bytes = b"ok", status: int = 200, extra: bytes = b"") -> bytes:
    """A response with a Content-Length."""
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, extra, len(body), body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; the last one when ``data`` is empty."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = 0
        self.fault: UpstreamFault | None = None

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def settled(self) -> bool:
        return bool(self.ended or self.fault)

    def on_data(self, data: bytes) -> None:
        assert not self.settled
        assert data
        self.pieces.append(data)

    def on_end(self) -> None:
        assert not self.settled
        self.ended += 1

    def on_fault(self, fault: UpstreamFault) -> None:
        assert not self.settled
        self.fault = fault


async def until(predicate: Callable[[], object], timeout_s: float = WATCHDOG_S) -> None:
    """Wait, without blocking the loop, until ``predicate`` is true."""
    async with asyncio.timeout(timeout_s):
        while not predicate():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(0.002)


def open_sockets() -> int:
    """How many sockets this process holds."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(link.startswith("socket:") for link in links)


def certificate(folder: Path, *names: str) -> Path:
    """A self-signed certificate and its key in one PEM file, valid for ``names`` (addresses or host
    names).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "penstock test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for name in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            alternatives.append(x509.DNSName(name))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path
