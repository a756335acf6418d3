"""What the tests of the client side share: a gateway's counts, requests in bytes, and a client of HTTP/2 by hand."""

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any, Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import msgspec

from ..support.gateway import Gateway
from ..support.procs import wait_until
from ..support.sim import Simulator

WATCHDOG_S = 30.0
MIB = 1 << 20
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "m", "messages": MESSAGES, **fields}


def chat_request(**fields: Any) -> bytes:
    """A whole chat request over HTTP/1.1."""
    body = msgspec.json.encode(chat(**fields))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def wait_quiet(gate: Gateway, sim: Simulator) -> None:
    """Wait until the gateway counts nothing and the backend answers nobody."""

    def busy() -> dict[str, float]:
        counts = {
            name: gate.metric(f"penstock_{name}")
            for name in ("inflight_requests", "running_requests", "queued_requests", "buffered_bytes")
        }
        counts["backend"] = sim.stats()["in_flight"]
        return {name: value for name, value in counts.items() if value}

    wait_until(lambda: not busy(), what="all counts at zero")
    assert "internal_error" not in gate.log()
    assert "Traceback" not in gate.log()


class Plain:
    """A TCP, TLS or Unix connection whose every read has a watchdog; `read_all` says how it ended."""

    def __init__(
        self,
        where: int | Path,
        *,
        trust: Path | None = None,
        receive_buffer: int | None = None,
        alpn: str | None = None,
    ) -> None:
        family = socket.AF_INET if isinstance(where, int) else socket.AF_UNIX
        raw = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(WATCHDOG_S)
        raw.connect(("127.0.0.1", where) if isinstance(where, int) else str(where))
        if trust is not None:
            context = ssl.create_default_context(cafile=trust)
            if alpn:
                context.set_alpn_protocols([alpn])
            raw = context.wrap_socket(raw, server_hostname="127.0.0.1")
        self.socket = raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def until(self, word: bytes) -> bytes:
        """What comes up to and with `word`; fails when the connection ends before."""
        got = b""
        while word not in got:
            piece = self.socket.recv(65536)
            assert piece, got[-500:]
            got += piece
        return got

    def read_all(self) -> tuple[bytes, bool]:
        """Everything up to the end, and whether that was a reset."""
        got = bytearray()
        while True:
            try:
                piece = self.socket.recv(1 << 20)
            except (ConnectionResetError, ssl.SSLError):
                return bytes(got), True
            if not piece:
                return bytes(got), False
            got += piece

    def is_open(self) -> bool:
        """Whether nothing has come, not even the end."""
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        finally:
            self.socket.settimeout(WATCHDOG_S)


class H2:
    """A connection of HTTP/2 in which the test decides when windows open and streams are reset."""

    def __init__(self, link: Plain, *, window: int = 65_535) -> None:
        self._link = link
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()
        if window > 65_535:
            self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
            self._h2.increment_flow_control_window(window - 65_535)
        self._flush()
        self.status: dict[int, int] = {}
        self.body: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.pongs = 0
        self.reset: set[int] = set()

    def _flush(self) -> None:
        self._link.send(self._h2.data_to_send())

    def request(self, body: bytes | None = None, path: str = CHAT) -> int:
        """Send a request; its stream."""
        if body is not None:
            stream = self.begin(b"", len(body), path)
            self.go_on(stream, body, end=True)
            return stream
        return self._open([(":method", "GET"), (":path", path)], end=True)

    def begin(self, data: bytes, length: int | None, path: str = CHAT) -> int:
        """Send the head of a POST and a first part of its body."""
        fields = [(":method", "POST"), (":path", path), ("content-type", "application/json")]
        if length is not None:
            fields.append(("content-length", str(length)))
        stream = self._open(fields, end=False)
        self.go_on(stream, data, end=False)
        return stream

    def _open(self, fields: list[tuple[str, str]], *, end: bool) -> int:
        stream: int = self._h2.get_next_available_stream_id()
        every = [*fields[:2], (":scheme", "http"), (":authority", "t"), *fields[2:]]
        self._h2.send_headers(stream, every, end_stream=end)
        self.body[stream] = bytearray()
        self._flush()
        return stream

    def go_on(self, stream: int, data: bytes, *, end: bool) -> None:
        """Send more of a body, as the server's windows allow."""
        while data:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if room:
                part, data = data[:room], data[room:]
                self._h2.send_data(stream, part, end_stream=end and not data)
                self._flush()
                end = end and bool(data)
            else:
                assert self.turn(), "the connection ended"
        if end:
            self._h2.end_stream(stream)
            self._flush()

    def ping(self) -> None:
        """Return when the server has seen what was sent so far."""
        self.pongs = 0
        self._h2.ping(b"penstock")
        self._flush()
        while not self.pongs:
            assert self.turn(), "the connection ended"

    def cancel(self, stream: int) -> None:
        """Reset one stream; the connection goes on."""
        self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def turn(self, *, acknowledge: bool = True) -> bool:
        """Take what comes next; False at the connection's end."""
        data = self._link.socket.recv(65536)
        for event in self._h2.receive_data(data) if data else []:
            if isinstance(event, h2.events.ResponseReceived):
                self.status[event.stream_id] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.body[event.stream_id] += event.data
                if acknowledge:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.PingAckReceived):
                self.pongs += 1
            elif isinstance(event, h2.events.StreamReset):
                self.reset.add(event.stream_id)
        with contextlib.suppress(OSError):
            self._flush()
        return bool(data)

    def finish(self, stream: int) -> bytes:
        """The whole body of a stream that must end."""
        while stream not in self.ended:
            assert stream not in self.reset, bytes(self.body[stream][-300:])
            assert self.turn(), "the connection ended"
        return bytes(self.body[stream])
