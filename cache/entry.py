"""A cached value with what proves it: this docstring is the byte format, the same in L1 and in L2.

Strategy: believe nothing that is not verified. Whoever has bytes, from shared memory that another process may
just be overwriting or from a Redis that anybody may write to, asks :func:`read`, and gets a whole, present
answer to this very key or nothing. It refuses to know what the value means and where the bytes came from.

Little-endian, offsets in bytes:

    0   the 32 bytes of the key
    32  stamp: the sum of the epochs under which the answer was asked for (`epoch.py`)
    40  created, milliseconds of the wall clock
    48  expires, milliseconds of the wall clock; at this moment it is no longer an answer
    56  offset of the value's end (bits 0-31), format of the entry (bits 32-63)
    64  the value, then zeros
    -8  xxh3_64 of all bytes before it; the whole is a multiple of 64 bytes

The checksum comes last, so that L1 takes what is hashed out of the map in one copy, without a second one to cut
it off.
"""

from __future__ import annotations

import struct

import xxhash

from .digest import KEY_BYTES, Key

#: Where the value begins in the bytes of an entry.
VALUE_AT = 64
#: Entries are a multiple of this, and lie at multiples of it.
UNIT_BYTES = 64
CHECKSUM_BYTES = 8

FORMAT = 1 << 32

HEAD = struct.Struct("<32sQQQQ")  # key, stamp, created, expires, end and format
TAIL = struct.Struct("<32x4Q")  # the same without the key
_CHECKSUM = struct.Struct("<Q")
_MAX_END = (1 << 32) - 1

_xxh3 = xxhash.xxh3_64_intdigest
_tail = TAIL.unpack_from


class Entry:
    """An entry that was verified whole.

    data: its bytes, at least up to `end`; the value is `data[VALUE_AT:end]`. created_ms, expires_ms: wall clock.
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
    return -(-(VALUE_AT + value_bytes + CHECKSUM_BYTES) // UNIT_BYTES) * UNIT_BYTES


def pack(key: Key, stamp: int, created_ms: int, expires_ms: int, *value: bytes) -> bytes:
    """The bytes of an entry; the parts of the value are joined.

    Raises ValueError for a key that is not 32 bytes or a value of 4 GiB, struct.error for a number that is not
    of 64 bits.
    """
    end = VALUE_AT + sum(map(len, value))
    if len(key) != KEY_BYTES or end > _MAX_END:
        raise ValueError(f"no entry: a key of {len(key)} bytes, a value of {end - VALUE_AT}")
    head = HEAD.pack(key, stamp, created_ms, expires_ms, FORMAT | end)
    body = b"".join((head, *value, bytes(-(end + CHECKSUM_BYTES) % UNIT_BYTES)))
    return body + _CHECKSUM.pack(_xxh3(body))


def read(data: bytes, key: Key, stamp: int, now_ms: int) -> Entry | None:
    """The entry in `data`, exactly the bytes that :func:`pack` made; None when they are anything else.

    That is: another key, another stamp, expired at now_ms, cut short, or any byte changed.
    """
    if len(data) < VALUE_AT + CHECKSUM_BYTES:
        return None
    body = data[:-CHECKSUM_BYTES]
    return verified(body, _CHECKSUM.unpack(data[-CHECKSUM_BYTES:])[0], key, stamp, now_ms)


def verified(body: bytes, checksum: int, key: Key, stamp: int, now_ms: int) -> Entry | None:
    """The entry whose bytes before the checksum are `body`, under the same conditions as :func:`read`."""
    if _xxh3(body) != checksum or not body.startswith(key) or len(body) < VALUE_AT:
        return None
    of, created_ms, expires_ms, end = _tail(body)
    end -= FORMAT
    if of != stamp or expires_ms <= now_ms or not VALUE_AT <= end <= len(body):
        return None
    return Entry(body, end, created_ms, expires_ms)


def with_expiry(packed: bytes, expires_ms: int) -> bytes:
    """The same entry with another end of its life, for bytes that :func:`read` accepted."""
    key, stamp, created_ms, _, end = HEAD.unpack_from(packed)
    return pack(Key(key), stamp, created_ms, expires_ms, packed[VALUE_AT : end - FORMAT])
