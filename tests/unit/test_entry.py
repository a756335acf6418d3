"""An entry is read whole, for its key, its stamp and its time, or not at all."""

from __future__ import annotations

import random
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.cache.entry import BODY_AT, UNIT_BYTES, VALUE_AT, pack, packed_bytes, read, with_expiry

KEY = Key(bytes(range(32)))
CREATED_MS, EXPIRES_MS = 1_700_000_000_000, 1_700_000_300_000
STAMP = 0xFEDC_BA98_7654_3210
NUMBERS = st.integers(0, 2**64 - 1)


@given(
    key=st.binary(min_size=32, max_size=32).map(Key),
    stamp=NUMBERS,
    created_ms=NUMBERS,
    expires_ms=st.integers(1, 2**64 - 1),
    parts=st.lists(st.binary(max_size=200), max_size=4),
)
def test_what_was_packed_is_read_back_with_its_times(
    key: Key, stamp: int, created_ms: int, expires_ms: int, parts: list[bytes]
) -> None:
    packed = pack(key, stamp, created_ms, expires_ms, *parts)
    value = b"".join(parts)
    assert len(packed) == packed_bytes(len(value))
    assert len(packed) % UNIT_BYTES == 0
    entry = read(packed, key, stamp, expires_ms - 1)
    assert entry is not None
    assert (entry.value, entry.created_ms, entry.expires_ms) == (value, created_ms, expires_ms)
    assert entry.data[VALUE_AT : entry.end] == value
    assert read(packed, key, stamp, expires_ms) is None


@pytest.mark.parametrize("size", [16_319, 16_320, 16_321, 100_000, 2 << 20])
def test_large_entries_have_the_same_format(size: int) -> None:
    value = random.Random(size).randbytes(size)
    packed = pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, value[:100], value[100:])
    entry = read(packed, KEY, STAMP, CREATED_MS)
    assert entry is not None
    assert entry.value == value
    assert len(packed) == packed_bytes(size)
    assert packed[:BODY_AT] == xxhash.xxh3_64_intdigest(packed[BODY_AT:]).to_bytes(8, "little")


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 700])
def test_every_bit_of_an_entry_counts(size: int) -> None:
    packed = pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, bytes(size))
    assert read(packed, KEY, STAMP, CREATED_MS) is not None
    for bit in range(8 * len(packed)):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        assert read(bytes(changed), KEY, STAMP, CREATED_MS) is None, bit


def test_an_entry_cut_short_or_longer_is_none() -> None:
    packed = pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, b"value")
    for length in range(len(packed)):
        assert read(packed[:length], KEY, STAMP, CREATED_MS) is None
    assert read(packed + bytes(64), KEY, STAMP, CREATED_MS) is None


@given(st.binary(max_size=300))
def test_rubbish_is_no_entry(data: bytes) -> None:
    assert read(data, KEY, STAMP, CREATED_MS) is None


def test_another_key_or_stamp_is_a_miss() -> None:
    packed = pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, b"value")
    for i in range(32):
        other = bytearray(KEY)
        other[i] ^= 0x80
        assert read(packed, Key(bytes(other)), STAMP, CREATED_MS) is None
    assert read(packed, KEY, STAMP + 1, CREATED_MS) is None
    assert read(packed, KEY, 0, CREATED_MS) is None


def test_an_entry_of_another_format_is_none_though_its_checksum_is_right() -> None:
    import xxhash

    packed = bytearray(pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, b"value"))
    for end_and_format in (1 << 33 | VALUE_AT + 5, VALUE_AT + 5, 1 << 32 | VALUE_AT - 1, 1 << 32 | 4096):
        struct.pack_into("<Q", packed, BODY_AT + VALUE_AT - 8, end_and_format)
        struct.pack_into("<Q", packed, 0, xxhash.xxh3_64_intdigest(bytes(packed[BODY_AT:])))
        assert read(bytes(packed), KEY, STAMP, CREATED_MS) is None


def test_another_expiry_leaves_all_else_as_it_was() -> None:
    packed = pack(KEY, STAMP, CREATED_MS, EXPIRES_MS, b"a", b"b" * 100)
    entry = read(with_expiry(packed, CREATED_MS + 5), KEY, STAMP, CREATED_MS + 4)
    assert entry is not None
    assert (entry.value, entry.created_ms, entry.expires_ms) == (
        b"a" + b"b" * 100,
        CREATED_MS,
        CREATED_MS + 5,
    )
    assert with_expiry(packed, EXPIRES_MS) == packed


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="a key of"):
        pack(Key(key), 0, 0, 0, b"value")


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(struct.error):
        pack(KEY, 1 << 64, 0, 0)
    with pytest.raises(struct.error):
        pack(KEY, 0, -1, 0)
