"""One HTTP/2 connection to a backend, seen from the client: bytes in, exchanges that moved, bytes out. No I/O.

The h2 library keeps the protocol's state. What is added here is what a gateway needs and the library leaves open:

* Frames are cut out of the reads here and given to h2 one by one, so that what came before an offence is not lost
  with it, and no frame over the agreed size is ever gathered.
* GOAWAY is read here: h2 takes it for the end of the connection, but streams that the server has begun go on.
* A response that is malformed costs its own stream, not the connection.
* Frames that lead nowhere are bounded in bytes; each exchange begun pays for some.
* Received bytes are acknowledged as they are read, but not those of a paused exchange: it holds
  :data:`WINDOW_BYTES` at most, and because the window of the connection is wider than all streams' together, no
  other waits for it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, H2Error
from h2.settings import SettingCodes, Settings

from .fault import FaultKind
from .h1 import HEAD_LIMIT_BYTES, INTERIM_LIMIT, MAX_CUTS, Refused
from .h2_head import request_fields, response_head

#: what a stream may send before we acknowledge some of it
WINDOW_BYTES = 128 * 1024
#: header lists above this end the connection, for their rest is not decoded; above HEAD_LIMIT_BYTES the stream
_DECODED_LIMIT_BYTES = 4 * HEAD_LIMIT_BYTES
_FRAME_LIMIT_BYTES = 16384
#: bytes of frames that led nowhere (pings, settings, priorities, unknown, empty data), and what a request pays of it
_BARREN_LIMIT_BYTES = 256 * 1024
_PAID_BYTES = 4096
#: request bodies are cut into frames of this at most, whatever the peer takes
_PIECE_BYTES = 64 * 1024
#: stream numbers are not used up to their end
_LAST_STREAM = 1 << 30

_DATA, _HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 4, 7, 9
_END_HEADERS = 4


class Exchange:
    """One request and its response. ``pieces`` are body bytes not yet taken; after ``fault`` or ``done`` nothing comes.

    ``unseen``: the backend has said that it did nothing with it. ``paused`` withholds acknowledgements.
    """

    __slots__ = (
        *(
            "_interim",
            "_number",
            "_received",
            "_unacked",
            "_upload",
            "bodyless",
            "content_length",
            "cuts",
            "done",
        ),
        *("fault", "got_bytes", "head_done", "headers", "owner", "paused", "pieces", "status", "unseen"),
    )

    def __init__(self, number: int, bodyless: bool, upload: memoryview, cuts: list[int] | None) -> None:
        self._number = number
        self._upload = upload
        self._interim = self._received = self._unacked = 0
        #: of a request whose response has no body whatever its fields say
        self.bodyless = bodyless
        self.cuts = cuts
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.content_length: int | None = None
        self.pieces: list[bytes] = []
        self.head_done = self.done = self.got_bytes = self.paused = self.unseen = False
        self.fault: Refused | None = None
        #: for whoever began it
        self.owner: Any = None

    def take(self) -> bytes:
        """All pieces as one object, and the list empty again."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data


class _Library(H2Connection):
    # how many closed streams are remembered, by how they were closed; h2's own 65,536 are 6 MB a connection
    MAX_CLOSED_STREAMS = 4096


class Session:
    """The client's side of a connection. After every call, ``outgoing()`` holds what is to be written.

    ``touched`` are the exchanges that the last ``receive`` moved, in order. ``greeted``: the server's SETTINGS are
    here. ``leaving``: it takes no more exchanges.
    """

    __slots__ = (
        *("_barren_bytes", "_in_head", "_library", "_partial", "_scheme", "_uploads", "exchanges", "greeted"),
        *("last_accepted", "leaving", "touched"),
    )

    def __init__(self, scheme: str, streams: int) -> None:
        self._scheme = scheme.encode()
        self._partial = b""
        self._in_head = False
        self._barren_bytes = 0
        self._uploads: dict[int, Exchange] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.touched: dict[Exchange, None] = {}
        self.greeted = False
        self.leaving = False
        self.last_accepted: int | None = None
        library = _Library(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                # both are done in h2_head, at less cost and per stream
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        library.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: _FRAME_LIMIT_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_LIMIT_BYTES,
            },
        )
        library.decoder.max_header_list_size = _DECODED_LIMIT_BYTES
        library.initiate_connection()
        library.increment_flow_control_window(min(2 * (streams + 1) * WINDOW_BYTES, (1 << 31) - 65536))
        self._library = library

    @property
    def allowed(self) -> int:
        """How many exchanges the server takes at a time."""
        return self._library.remote_settings.max_concurrent_streams

    # -- what we say -------------------------------------------------------------------------------

    def start(self, head: bytes, body: bytes | None, cuts: list[int] | None = None) -> Exchange:
        """Begin an exchange: its head, and of its body what the windows allow. Raises :class:`Refused`."""
        library = self._library
        fields = request_fields(head, self._scheme)
        try:
            number = library.get_next_available_stream_id()
            library.send_headers(number, fields, end_stream=not body)
        except H2Error as error:
            raise Refused(FaultKind.PROTOCOL, type(error).__name__) from None
        # h2 ends the connection where a body disagrees with its Content-Length; here that costs the stream alone
        setattr(library.streams[number], "_initialize_content_length", _nothing)  # noqa: B010
        exchange = Exchange(number, fields[0][1] == b"HEAD", memoryview(body or b""), cuts)
        self.exchanges[number] = exchange
        self._barren_bytes = max(0, self._barren_bytes - _PAID_BYTES)
        if number >= _LAST_STREAM:
            self.leaving = True
        if body:
            self._uploads[number] = exchange
        return exchange

    def upload(self, limit_bytes: int) -> int:
        """Say as much of the request bodies as the windows allow and ``limit_bytes``; how many bytes that were.

        A frame of each in turn, so that a narrow window is shared.
        """
        library, uploads = self._library, self._uploads
        said = 0
        moved = True
        while uploads and moved and said < limit_bytes:
            moved = False
            for number, exchange in list(uploads.items()):
                left = exchange._upload
                room = min(library.local_flow_control_window(number), library.max_outbound_frame_size)
                piece = left[: min(room, _PIECE_BYTES)] if room > 0 else left[:0]
                if not piece:
                    continue
                exchange._upload = left = left[len(piece) :]
                library.send_data(number, bytes(piece), end_stream=not left)
                if not left:
                    del uploads[number]
                said += len(piece)
                moved = True
        if said:
            self._barren_bytes = 0
        return said

    def acknowledge(self, exchange: Exchange) -> None:
        """The bytes that a paused exchange held were taken: more may come."""
        unacked, exchange._unacked = exchange._unacked, 0
        if unacked:
            self._acknowledge(exchange._number, unacked)

    def cancel(self, exchange: Exchange, code: ErrorCodes = ErrorCodes.CANCEL) -> bool:
        """Nobody wants the rest. False, and nothing happens, where the exchange was over."""
        number = exchange._number
        if self.exchanges.pop(number, None) is None:
            return False
        self._uploads.pop(number, None)
        with contextlib.suppress(H2Error):
            self._library.reset_stream(number, code)
        self.acknowledge(exchange)
        return True

    def ping(self) -> None:
        """Ask for a sign of life."""
        with contextlib.suppress(H2Error):
            self._library.ping(b"penstock")

    def goodbye(self) -> None:
        """Say that this end closes the connection; nothing is received or begun afterwards."""
        self.leaving = True
        with contextlib.suppress(H2Error):
            self._library.close_connection()

    def outgoing(self) -> bytes:
        """What is to be written now."""
        return self._library.data_to_send()

    def end(self) -> None:
        """Let go of the library, whose objects refer to themselves: nothing is left for the cycle collector."""
        self.leaving = True
        vars(self._library).clear()

    # -- what we are told --------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Read what arrived; moves ``touched``. Raises :class:`Refused` where the connection cannot go on."""
        self.touched.clear()
        if self._partial:
            data = self._partial + data
        view = memoryview(data)
        at, size = 0, len(data)
        while size - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            kind = data[at + 3]
            if not self.greeted and kind != _SETTINGS:
                raise Refused(FaultKind.PROTOCOL, "the server does not speak HTTP/2")
            if length > _FRAME_LIMIT_BYTES:
                raise Refused(FaultKind.PROTOCOL, f"a frame over {_FRAME_LIMIT_BYTES} bytes")
            end = at + 9 + length
            if end > size:
                break
            if kind != _DATA or not length:
                self._barren_bytes += 9 + length
                if self._barren_bytes > _BARREN_LIMIT_BYTES:
                    raise Refused(
                        FaultKind.TOO_LARGE, f"over {_BARREN_LIMIT_BYTES} bytes of frames for nothing"
                    )
            if kind == _GOAWAY and not self._in_head:
                self._going_away(data[at + 9 : end])
            else:
                if kind in (_HEADERS, _CONTINUATION):
                    self._in_head = not data[at + 4] & _END_HEADERS
                self._feed(view[at:end])
            at = end
        self._partial = data[at:]

    def _feed(self, frame: memoryview) -> None:
        try:
            events = self._library.receive_data(frame)
        except DenialOfServiceError:
            raise Refused(FaultKind.TOO_LARGE, f"a head over {_DECODED_LIMIT_BYTES} bytes") from None
        except H2Error as error:
            raise Refused(FaultKind.PROTOCOL, type(error).__name__) from None
        for event in events:
            self._take_in(event)

    def _take_in(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self.greeted = True
            return
        number = getattr(event, "stream_id", None)
        exchange = self.exchanges.get(number) if number else None
        if exchange is None:
            if isinstance(event, DataReceived):
                self._acknowledge(event.stream_id or 0, event.flow_controlled_length or 0)
            return
        if isinstance(event, WindowUpdated):
            return
        self.touched[exchange] = None
        try:
            if isinstance(event, DataReceived):
                self._body(exchange, event.data or b"", event.flow_controlled_length or 0)
            elif isinstance(event, ResponseReceived):
                self._head(exchange, event)
            elif isinstance(event, StreamEnded):
                self._ended(exchange)
            elif isinstance(event, StreamReset):
                self._was_reset(exchange, int(event.error_code or 0))
            elif isinstance(event, InformationalResponseReceived):
                exchange.got_bytes = True
                exchange._interim += 1
                if exchange._interim > INTERIM_LIMIT:
                    raise Refused(FaultKind.PROTOCOL, f"over {INTERIM_LIMIT} informational responses")
                if (event.headers or [(b"", b"")])[0][1] == b"101":
                    raise Refused(FaultKind.PROTOCOL, "status 101")
        except Refused as refused:
            exchange.fault = refused
            self.cancel(exchange, ErrorCodes.PROTOCOL_ERROR)

    def _head(self, exchange: Exchange, event: ResponseReceived) -> None:
        exchange.got_bytes = True
        exchange.status, exchange.headers, length = response_head(event.headers or ())
        exchange.content_length = 0 if exchange.bodyless else length
        exchange.head_done = True
        self._barren_bytes = 0

    def _body(self, exchange: Exchange, data: bytes, flow_bytes: int) -> None:
        if not exchange.head_done:
            raise Refused(FaultKind.PROTOCOL, "a body before its head")
        exchange._unacked += flow_bytes
        if data:
            self._barren_bytes = 0
            exchange._received += len(data)
            if exchange.content_length is None:
                cuts = exchange.cuts
                if cuts is not None and len(cuts) < MAX_CUTS:
                    cuts.append(exchange._received)
            elif exchange._received > exchange.content_length:
                raise Refused(FaultKind.PROTOCOL, "a body longer than its Content-Length")
            exchange.pieces.append(data)
        if not exchange.paused:
            self.acknowledge(exchange)

    def _ended(self, exchange: Exchange) -> None:
        if not exchange.head_done:
            raise Refused(FaultKind.PROTOCOL, "an end before the head")
        if exchange.content_length is not None and exchange._received < exchange.content_length:
            raise Refused(FaultKind.CLOSED, "a body shorter than its Content-Length")
        exchange.done = True
        if exchange._number in self._uploads:
            # answered before the request was read: its rest is not wanted (RFC 9113 section 8.1)
            self.cancel(exchange, ErrorCodes.NO_ERROR)
            return
        del self.exchanges[exchange._number]
        self.acknowledge(exchange)

    def _was_reset(self, exchange: Exchange, code: int) -> None:
        exchange.unseen = code == ErrorCodes.REFUSED_STREAM and not exchange.got_bytes
        if code == ErrorCodes.HTTP_1_1_REQUIRED:
            exchange.fault = Refused(FaultKind.PROTOCOL, "the server asks for HTTP/1.1")
        else:
            exchange.fault = Refused(FaultKind.CLOSED, f"the server reset the stream: {_name(code)}")
        del self.exchanges[exchange._number]
        self._uploads.pop(exchange._number, None)
        self.acknowledge(exchange)
        self._barren_bytes = 0

    def _going_away(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise Refused(FaultKind.PROTOCOL, "a GOAWAY cut short")
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        if self.last_accepted is None or last < self.last_accepted:
            self.last_accepted = last
        self.leaving = True
        code = int.from_bytes(payload[4:8], "big")
        for number, exchange in list(self.exchanges.items()):
            if number > self.last_accepted:
                del self.exchanges[number]
                self._uploads.pop(number, None)
                exchange.unseen = not exchange.got_bytes
                exchange.fault = Refused(FaultKind.CLOSED, f"the server is going away: {_name(code)}")
                self.touched[exchange] = None

    def _acknowledge(self, number: int, flow_bytes: int) -> None:
        with contextlib.suppress(H2Error):
            self._library.acknowledge_received_data(flow_bytes, number)


def _nothing(headers: object) -> None:
    pass


def _name(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"
