"""An HTTP/2 server that does exactly what a test says, in the test's own loop, and a pool to ask it."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from penstock.gateway.upstream.connector import Connector
from penstock.gateway.upstream.dns import Resolver
from penstock.gateway.upstream.h2_pool import H2Pool
from penstock.gateway.upstream.origin import Origin
from penstock.gateway.upstream.tls import TlsClient

from .scripted import until

Field = tuple[bytes, bytes]


@dataclass
class Asked:
    """One request as it arrived."""

    number: int
    fields: list[Field]
    body: bytes = b""
    whole: bool = False
    reset: int | None = None

    def field(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2
        return values[0] if values else None


class H2Peer:
    """The server's end of one connection; ``asked`` are its requests by stream, ``events`` all it was told."""

    def __init__(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        settings: dict[int, int],
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.acknowledges = True
        self.h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        initial = {SettingCodes.MAX_CONCURRENT_STREAMS: 100, SettingCodes.MAX_HEADER_LIST_SIZE: 65536}
        self.h2.local_settings = Settings(client=False, initial_values={**initial, **settings})
        self.asked: dict[int, Asked] = {}
        self.events: list[Event] = []
        self.most_streams = 0
        self.open: set[int] = set()

    def feed(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, RequestReceived):
                assert event.stream_id
                self.asked[event.stream_id] = Asked(event.stream_id, [(n, v) for n, v in event.headers or ()])
                self.open.add(event.stream_id)
                self.most_streams = max(self.most_streams, len(self.open))
            elif isinstance(event, DataReceived):
                assert event.stream_id
                self.asked[event.stream_id].body += event.data or b""
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            elif isinstance(event, StreamEnded):
                assert event.stream_id
                self.asked[event.stream_id].whole = True
            elif isinstance(event, StreamReset):
                assert event.stream_id
                self.asked[event.stream_id].reset = int(event.error_code or 0)
                self.open.discard(event.stream_id)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def request(self, place: int = 0) -> Asked:
        """The request that came as the ``place``-th on this connection, once it is whole."""
        await until(lambda: len(self.asked) > place and list(self.asked.values())[place].whole)
        return list(self.asked.values())[place]

    def head(self, number: int, status: int = 200, *fields: Field, end: bool = False) -> None:
        self.h2.send_headers(number, [(b":status", b"%d" % status), *fields], end_stream=end)
        if end:
            self.open.discard(number)
        self.flush()

    def piece(self, number: int, data: bytes, end: bool = False, pad: int | None = None) -> None:
        """One DATA frame, which the client's window must have room for."""
        self.h2.send_data(number, data, end_stream=end, pad_length=pad)
        if end:
            self.open.discard(number)
        self.flush()

    def reply(self, number: int, body: bytes = b"ok", status: int = 200, *fields: Field) -> None:
        self.head(number, status, (b"content-length", b"%d" % len(body)), *fields, end=not body)
        if body:
            self.piece(number, body, end=True)

    def window(self, number: int) -> int:
        return min(self.h2.local_flow_control_window(number), 16384)

    async def pour(self, number: int, data: bytes, end: bool = True) -> None:
        """A body as fast as the client's window lets it."""
        view = memoryview(data)
        while view:
            await until(lambda: self.window(number) > 0)
            size = self.window(number)
            self.piece(number, bytes(view[:size]), end=end and size >= len(view))
            view = view[size:]
            await asyncio.sleep(0)

    def raw(self, kind: int, flags: int, number: int, payload: bytes = b"") -> None:
        """A frame that h2 might refuse to make."""
        self.writer.write(frame(kind, flags, number, payload))

    def goaway(self, last: int, code: int = 0) -> None:
        self.raw(7, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))

    async def forever(self) -> None:
        await asyncio.Event().wait()


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    """A frame's bytes (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


Handler = Callable[[H2Peer], Awaitable[None]]


def each(answer: Callable[[H2Peer, Asked], Awaitable[None]]) -> Handler:
    """A connection's handler that answers each whole request in a task of its own."""

    async def handler(peer: H2Peer) -> None:
        done = 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                await until(lambda done=done: len(peer.asked) > done, 3600)
                tasks.create_task(answer(peer, await peer.request(done)))
                done += 1

    return handler


async def echo(peer: H2Peer, asked: Asked) -> None:
    """200 with the request's body."""
    if asked.reset is None:
        body = asked.body or b"ok"
        with contextlib.suppress(H2Error):
            peer.head(asked.number, 200, (b"content-length", b"%d" % len(body)))
            await peer.pour(asked.number, body)


@dataclass
class H2Server:
    url: str = ""
    peers: list[H2Peer] = field(default_factory=list)
    open: int = 0

    @property
    def asked(self) -> int:
        return sum(len(peer.asked) for peer in self.peers)


@contextlib.asynccontextmanager
async def h2_scripted(
    handler: Handler,
    *,
    tls: ssl.SSLContext | None = None,
    greet: bool = True,
    acknowledges: bool = True,
    **settings: int,
) -> AsyncIterator[H2Server]:
    """Serve each connection with ``handler``, whose end closes it; ``settings`` by their names in h2, lower case."""
    tasks: set[asyncio.Future[None]] = set()
    server = H2Server()
    chosen = {SettingCodes[name.upper()]: value for name, value in settings.items()}

    async def read(peer: H2Peer) -> None:
        with contextlib.suppress(H2Error):
            while data := await peer.reader.read(65536):
                peer.feed(data)
                peer.flush()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = H2Peer(len(server.peers), reader, writer, chosen)
        peer.acknowledges = acknowledges
        server.peers.append(peer)
        server.open += 1
        try:
            if greet:
                peer.h2.initiate_connection()
                peer.flush()
            reading = asyncio.ensure_future(read(peer))
            handling = asyncio.ensure_future(handler(peer))
            for part in (reading, handling):
                tasks.add(part)
                part.add_done_callback(tasks.discard)
            try:
                await asyncio.wait({reading, handling}, return_when=asyncio.FIRST_COMPLETED)
                if handling.done():
                    handling.result()
            finally:
                reading.cancel()
                handling.cancel()
                await asyncio.wait({reading, handling})
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            server.open -= 1
            writer.close()
            tasks.discard(task)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
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
async def h2_pool(
    url: str,
    *,
    clock: Callable[[], float] | None = None,
    tls: TlsClient | None = None,
    min_connections: int = 1,
    max_connections: int = 10,
    max_streams: int = 100,
    idle_s: float = 4.0,
) -> AsyncIterator[H2Pool]:
    """A pool for ``url`` that must be empty once it is closed."""
    loop = asyncio.get_running_loop()
    clock = clock or loop.time
    resolver = Resolver(loop=loop, clock=clock, ttl_s=300)
    pool = H2Pool(
        Origin.parse(url),
        loop=loop,
        clock=clock,
        connector=Connector(loop=loop, clock=clock, resolver=resolver, tls=tls),
        min_connections=min_connections,
        max_connections=max_connections,
        max_streams=max_streams,
        idle_s=idle_s,
    )
    try:
        yield pool
    finally:
        await pool.close()
        assert (pool.active, pool.idle, pool.connections) == (0, 0, 0)
        assert not pool._opening
