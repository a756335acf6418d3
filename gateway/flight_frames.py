"""What two workers say to each other about a flight: this docstring is the byte format.

A follower connects and sends its wish, 40 bytes: the key (32), its slot and that slot's generation (4 each). The
leader answers in frames: 1 byte kind, 4 bytes length of the payload, the payload; numbers are big-endian.

    HEAD   1   msgpack [status, headers, media, whole]: first, once; whole: DATA up to END is one answer
    DATA   2   bytes of the body, in order, at most 64 KiB
    END    3   empty: the body is complete
    FAULT  4   msgpack [kind, message, param, retry_after_s, headers]: what the flight ended with
    GONE   5   empty: no such flight, or none that may be joined; first and last

END, FAULT and GONE are the last frame. Pure: bytes in, frames out. Whatever does not follow this is a
:class:`BadFrame`, and no length that is announced is believed beyond its bound.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from ..cache.digest import KEY_BYTES, Key
from .errors import Fault, Kind
from .ticket import Head

WISH_BYTES = KEY_BYTES + 8
DATA_LIMIT_BYTES = 64 << 10

_PREFIX_BYTES = 5


class FrameKind(enum.IntEnum):
    """The first byte of a frame."""

    HEAD = 1
    DATA = 2
    END = 3
    FAULT = 4
    GONE = 5


#: Longest payload of each kind. A head comes from one of at most 64 KiB and 128 fields.
_LIMIT_BYTES = {
    FrameKind.HEAD: 256 << 10,
    FrameKind.DATA: DATA_LIMIT_BYTES,
    FrameKind.END: 0,
    FrameKind.FAULT: 64 << 10,
    FrameKind.GONE: 0,
}


class BadFrame(Exception):
    """The peer does not speak this format."""


class _Head(msgspec.Struct, array_like=True, frozen=True):
    status: int
    headers: list[tuple[str, str]]
    media: str
    whole: bool


class _Fault(msgspec.Struct, array_like=True, frozen=True):
    kind: Kind
    message: str
    param: str | None
    retry_after_s: float | None
    headers: tuple[tuple[str, str], ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_fault = msgspec.msgpack.Decoder(_Fault).decode


def wish(key: Key, slot: int, generation: int) -> bytes:
    """What a follower sends; of the generation 32 bits count."""
    return key + slot.to_bytes(4, "big") + (generation & 0xFFFF_FFFF).to_bytes(4, "big")


def read_wish(data: bytes) -> tuple[Key, int, int]:
    """Key, slot and generation of :data:`WISH_BYTES` bytes."""
    return Key(data[:KEY_BYTES]), int.from_bytes(data[32:36], "big"), int.from_bytes(data[36:40], "big")


def frame(kind: FrameKind, payload: bytes | memoryview = b"") -> bytes:
    """One frame. Raises ValueError for a payload over its kind's bound."""
    if len(payload) > _LIMIT_BYTES[kind]:
        raise ValueError(f"{len(payload)} bytes for a frame of kind {kind.name}")
    return b"".join((kind.to_bytes(1, "big"), len(payload).to_bytes(4, "big"), payload))


def head_frame(head: Head) -> bytes:
    """How an answer begins, without its body."""
    return frame(FrameKind.HEAD, _encode(_Head(head.status, head.headers, head.media, head.body is not None)))


def data_frames(data: bytes) -> Iterator[bytes]:
    """The frames of one piece: one, unless it is long."""
    if len(data) <= DATA_LIMIT_BYTES:
        yield frame(FrameKind.DATA, data)
        return
    view = memoryview(data)
    for at in range(0, len(data), DATA_LIMIT_BYTES):
        yield frame(FrameKind.DATA, view[at : at + DATA_LIMIT_BYTES])


def fault_frame(fault: Fault) -> bytes:
    """What a flight ended with."""
    return frame(
        FrameKind.FAULT,
        _encode(_Fault(fault.kind, fault.message, fault.param, fault.retry_after_s, fault.headers)),
    )


def read_head(payload: bytes) -> tuple[Head, bool]:
    """The head of a HEAD frame, its body None, and whether the whole answer follows. Raises BadFrame."""
    try:
        head = _decode_head(payload)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadFrame(f"a head that is none: {error}") from None
    if not 200 <= head.status <= 599:
        raise BadFrame(f"status {head.status}")
    return Head(head.status, head.headers, head.media, None), head.whole


def read_fault(payload: bytes) -> Fault:
    """The fault of a FAULT frame. Raises BadFrame."""
    try:
        fault = _decode_fault(payload)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadFrame(f"a fault that is none: {error}") from None
    return Fault(
        fault.kind,
        fault.message,
        param=fault.param,
        retry_after_s=fault.retry_after_s,
        headers=fault.headers,
    )


class Frames:
    """Bytes as they come, frames as they are asked for: ``feed``, then ``next`` until it gives None."""

    __slots__ = ("_at", "_buffer")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0

    @property
    def rest_bytes(self) -> int:
        """How many bytes are here that no frame was made of yet."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """More bytes. Between two feeds all frames should be taken, or what waits grows by what is fed."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def next(self) -> tuple[FrameKind, bytes] | None:
        """The next whole frame. Raises BadFrame for an unknown kind or a length over its bound."""
        buffer, at = self._buffer, self._at
        if len(buffer) - at < _PREFIX_BYTES:
            if len(buffer) > at:
                self._check(buffer[at], 0)
            return None
        kind = self._check(buffer[at], int.from_bytes(buffer[at + 1 : at + _PREFIX_BYTES], "big"))
        end = at + _PREFIX_BYTES + int.from_bytes(buffer[at + 1 : at + _PREFIX_BYTES], "big")
        if len(buffer) < end:
            return None
        self._at = end
        return kind, buffer[at + _PREFIX_BYTES : end]

    @staticmethod
    def _check(kind: int, size: int) -> FrameKind:
        try:
            known = FrameKind(kind)
        except ValueError:
            raise BadFrame(f"a frame of kind {kind}") from None
        if size > _LIMIT_BYTES[known]:
            raise BadFrame(f"{size} bytes announced for a frame of kind {known.name}")
        return known
