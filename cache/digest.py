"""A cache key: SHA-256 over length-prefixed parts, so that no two lists of parts have one encoding.

Tenants share a cache, so a key is an identity and 64 bits would not do (birthday bound); xxh3 checks bytes
elsewhere, it never identifies. Knows nothing of what the parts mean.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NewType

#: 32 bytes: the identity of one cacheable request.
Key = NewType("Key", bytes)

KEY_BYTES = 32


def prefix(*parts: bytes) -> bytes:
    """The parts, each behind its length as 4 bytes big-endian: injective, so it may be joined and hashed."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def key_of(prefixed: bytes, body: bytes) -> Key:
    """The digest of what :func:`prefix` made and one last part of any length (nothing follows it)."""
    return Key(sha256(prefixed + body).digest())
