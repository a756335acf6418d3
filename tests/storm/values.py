"""Values that anybody can check who knows the key: bytes cut out of one pseudo-random pool.

Strategy: an entry's `created_ms` is no time here but a version, which says with the key how long the value is and
where in the pool it begins; its `expires_ms` has the version's remainder, so that it cannot be another entry's.
"""

from __future__ import annotations

import hashlib
import math

from penstock.cache.digest import Key
from penstock.cache.entry import VALUE_AT, Entry

_POOL = hashlib.shake_128(b"storm").digest(1 << 20)
_REMAINDER = 1009
_FIELD = 1 << 24


def key_named(name: str) -> Key:
    """A key."""
    return Key(hashlib.sha256(name.encode()).digest())


def length_of(key: Key, version: int, max_bytes: int) -> int:
    """How long the value of `key` is in `version`: 1 to `max_bytes`, every order of magnitude alike."""
    share = _number(b"length", key, version) / 2**64
    return round(math.exp(share * math.log(max_bytes)))


def value_of(key: Key, version: int, length: int) -> bytes:
    """The value of `key` in `version`, when it is so long."""
    start = _number(b"start", key, version) % (len(_POOL) - length)
    return _POOL[start : start + length]


def _number(purpose: bytes, key: Key, version: int) -> int:
    hashed = hashlib.blake2b(key + version.to_bytes(8, "little"), digest_size=8, person=purpose)
    return int.from_bytes(hashed.digest(), "little")


def expiry_of(version: int, at_least_ms: int) -> int:
    """An expiry that fits the version, within a second behind `at_least_ms`."""
    return at_least_ms + (version - at_least_ms) % _REMAINDER


def fault_in(entry: Entry, key: Key, length: int) -> str | None:
    """What is wrong with an entry found for `key`, given its version's length; None when every byte is right."""
    value = bytes(entry.data[VALUE_AT : entry.end])
    version = entry.created_ms
    if value != value_of(key, version, length):
        return f"{len(value)} bytes {value[:32].hex()} are not version {version:#x} of {key.hex()}"
    if (entry.expires_ms - version) % _REMAINDER:
        return f"version {version:#x} of {key.hex()} expires at {entry.expires_ms}, which is not its own"
    return None


def version_of(flushes_begun: int, number: int) -> int:
    """A version that says how many flushes had begun before it was made."""
    return flushes_begun * _FIELD + number % _FIELD


def flushes_before(version: int) -> int:
    """How many flushes had begun."""
    return version // _FIELD
