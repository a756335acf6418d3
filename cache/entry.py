"""A cached value with what proves it: this docstring is the byte format, the same in L1 and in L2.

Strategy: believe nothing that is not verified. Whoever has bytes, from shared memory that another process may
just be overwriting or from a Redis that anybody may write to, asks :func:`read`, and gets a whole, present
answer to this very key or nothing. It refuses to know what the value means and where the bytes came from.

Little-endian, offsets in bytes:

    0   xxh3_64 of all bytes behind it: the rest is the *body*
    8   the 32 bytes of the key
    40  stamp: the sum of the epochs under which the answer was asked for (`epoch.py`)
    48  created, milliseconds of the wall clock
    56  expires, milliseconds of the wall clock; at this moment it is no longer an answer
    64  offset of the value's end in the body (bits 0-31), format of the entry (bits 32-63)
    72  the value, then zeros; the whole is a multiple of 64 bytes

L1 takes the body out of the map in one copy, hashes just that, and reads the checksum where it lies.
"""

from __future__ import annotations

import struct

import xxhash

from .digest import KEY_BYTES, Key

#: Where the value begins in a body.
VALUE_AT = 64
#: Entries are a multiple of this, and lie at multiples of it.
UNIT_BYTES = 64
#: Where the body begins in an entry.
BODY_AT = 8

FORMAT = 1 << 32

#: Of a body: stamp, created, expires, end and format.
TAIL = struct.Struct("<32x4Q")
_HEAD = struct.Struct("<32s4Q")  # the same behind the key
_CHECKSUM = struct.Struct("<Q")
_LARGE = 16 * 1024  # from here on another copy costs more than hashing in parts
_MAX_END = (1 << 32) - 1
_PADDING = tuple(bytes(-(i + BODY_AT) % UNIT_BYTES) for i in range(UNIT_BYTES))

_xxh3 = xxhash.xxh3_64_intdigest
_tail = TAIL.unpack_from


class Entry:
    """An entry that was verified whole.

    data: its body; the value is `data[VALUE_AT:end]`. created_ms, expires_ms: wall clock.
    """

    __slots__ = ("created_ms", "data", "end", "expires_ms")

    def __init__(self, data: bytes, end: int, created_ms: int, expires_ms: int) -> None:
        self.data = data
        self.end = end
        self.created_ms = created_ms
        self.expires_ms = expires_ms

    @property
    def value(self) -> bytes:
        """A copy of the value."""
        return self.data[VALUE_AT : self.end]


def packed_bytes(value_bytes: int) -> int:
    """The size of an entry whose value has this size."""
    return -(-(BODY_AT + VALUE_AT + value_bytes) // UNIT_BYTES) * UNIT_BYTES


def pack(key: Key, stamp: int, created_ms: int, expires_ms: int, *value: bytes | bytearray) -> bytes:
    """The bytes of an entry; the parts of the value are joined.

    Raises ValueError for a key that is not 32 bytes or a value of 4 GiB, struct.error for a number that is not
    of 64 bits.
    """
    size = 0
    for part in value:
        size += len(part)
    end = VALUE_AT + size
    if len(key) != KEY_BYTES or end > _MAX_END:
        raise ValueError(f"no entry: a key of {len(key)} bytes, a value of {size}")
    head = _HEAD.pack(key, stamp, created_ms, expires_ms, FORMAT | end)
    padding = _PADDING[end % UNIT_BYTES]
    if end > _LARGE:
        checksum = xxhash.xxh3_64(head)
        for part in (*value, padding):
            checksum.update(part)
        return b"".join((_CHECKSUM.pack(checksum.intdigest()), head, *value, padding))
    body = b"".join((head, *value, padding))
    return _CHECKSUM.pack(_xxh3(body)) + body


def read(data: bytes, key: Key, stamp: int, now_ms: int) -> Entry | None:
    """The entry in `data`, exactly the bytes that :func:`pack` made; None when they are anything else.

    That is: another key, another stamp, expired at now_ms, cut short, or any byte changed.
    """
    if len(data) < BODY_AT + VALUE_AT:
        return None
    return verified(data[BODY_AT:], _CHECKSUM.unpack_from(data)[0], key, stamp, now_ms)


def verified(body: bytes, checksum: int, key: Key, stamp: int, now_ms: int) -> Entry | None:
    """The entry of this body and this checksum, under the same conditions as :func:`read`."""
    if _xxh3(body) != checksum or not body.startswith(key) or len(body) < VALUE_AT:
        return None
    of, created_ms, expires_ms, end = _tail(body)
    end -= FORMAT
    if of != stamp or expires_ms <= now_ms or not VALUE_AT <= end <= len(body):
        return None
    return Entry(body, end, created_ms, expires_ms)


def with_expiry(packed: bytes, expires_ms: int) -> bytes:
    """The same entry with another end of its life, for bytes that :func:`read` accepted."""
    body = packed[BODY_AT:]
    stamp, created_ms, _, end = _tail(body)
    return pack(Key(body[:KEY_BYTES]), stamp, created_ms, expires_ms, body[VALUE_AT : end - FORMAT])
