"""What stands in Redis under a key: any bytes are an entry, a lease or nothing, and cost bounded memory."""

import functools
import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.remote.value import OVERHEAD_BYTES, Values, is_lease, lease_of

MAX = 1 << 16


@functools.cache
def _values(above: int = 100) -> Values:
    return Values(above, MAX)


@given(st.binary(min_size=1, max_size=5000), st.sampled_from([0, 100, 6000]))
def test_what_was_wrapped_is_unwrapped(packed: bytes, above: int) -> None:
    assert _values(above).unwrap(_values(above).wrap(packed)) == packed


@given(st.binary(max_size=300))
def test_any_bytes_are_something_or_nothing_and_never_more_than_allowed(value: bytes) -> None:
    for head in (b"", b"ps1P", b"ps1Z", b"ps1L"):
        found = _values().unwrap(head + value)
        assert found is None or len(found) <= MAX


@given(st.binary(min_size=200, max_size=400), st.data())
def test_a_changed_frame_is_nothing_or_other_bytes_but_no_error(packed: bytes, data: st.DataObject) -> None:
    value = bytearray(_values().wrap(packed * 4))
    at = data.draw(st.integers(4, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    found = _values().unwrap(bytes(value))
    assert found is None or len(found) <= MAX


def test_only_what_becomes_shorter_is_compressed() -> None:
    noise, text = os.urandom(4000), b"text " * 800
    assert len(_values().wrap(noise)) == len(noise) + OVERHEAD_BYTES
    assert len(_values().wrap(text)) < 200
    assert len(_values(5000).wrap(text)) == len(text) + OVERHEAD_BYTES


@pytest.mark.parametrize(
    "frame",
    [
        zstandard.ZstdCompressor().compress(bytes(MAX + 1)),
        zstandard.ZstdCompressor().compress(bytes(1 << 30)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)),
        zstandard.compress(b""),
        zstandard.compress(bytes(100)) * 2,
        zstandard.compress(bytes(100))[:-1],
        zstandard.compress(bytes(100))[:5],
        b"",
    ],
    ids=["a byte too long", "a bomb", "no size", "empty", "two frames", "cut", "a head", "nothing"],
)
def test_a_frame_that_is_not_ours_is_nothing(frame: bytes) -> None:
    assert _values().unwrap(b"ps1Z" + frame) is None


def test_a_frame_that_lies_about_its_size_is_nothing() -> None:
    frame = bytearray(zstandard.compress(b"x" * 200))
    assert zstandard.frame_content_size(bytes(frame)) == 200
    at = frame.index(200)
    for size in (0, 1, 199, 201, 255):
        frame[at] = size
        assert _values().unwrap(b"ps1Z" + bytes(frame)) is None


def test_the_longest_entry_fits_and_one_byte_more_does_not() -> None:
    for values in (_values(), _values(1 << 30)):
        assert values.unwrap(values.wrap(bytes(MAX))) == bytes(MAX)
        assert values.unwrap(values.wrap(bytes(MAX + 1))) is None


def test_a_lease_is_a_node_and_no_entry() -> None:
    lease = lease_of(bytes(range(16)))
    assert is_lease(lease)
    assert _values().unwrap(lease) is None
    assert not is_lease(lease + b"x")
    assert not is_lease(b"ps1P" + bytes(16))
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        lease_of(b"abc")
