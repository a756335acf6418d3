"""What the simulator says: words drawn from a generator seeded by the request itself.

The same request gives the same text, ids and vectors, in any process and on any day. Fields that do not change the
meaning of a request (`stream`, `user`, …) are left out of the seed, so a stream and a plain reply say the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

_IGNORED = frozenset(
    {
        *("stream", "stream_options", "user", "metadata", "request_id", "session_id", "priority", "cache"),
        "return_token_ids",
    }
)
_WORDS = (
    *(
        "water",
        "gate",
        "pipe",
        "flow",
        "river",
        "turbine",
        "steady",
        "pressure",
        "valve",
        "channel",
        "stone",
        "lake",
        "weir",
        "bank",
    ),
    *(
        "current",
        "wheel",
        "spring",
        "tide",
        "basin",
        "level",
        "drop",
        "stream",
        "force",
        "wave",
        "light",
        "engine",
        "quiet",
        "over",
    ),
    *(
        "under",
        "through",
        "along",
        "before",
        "after",
        "the",
        "a",
        "of",
        "and",
        "to",
        "in",
        "is",
        "it",
        "that",
    ),
    *("with", "as", "for", "was", "on", "are", "by", "this", "from", "or", "an", "be", "at", "one"),
    *("not", "but", "all", "were", "when", "we", "there", "can", "more", "if", "out", "so", "up", "said"),
    *(
        "what",
        "its",
        "about",
        "into",
        "than",
        "them",
        "then",
        "only",
        "some",
        "could",
        "time",
        "these",
        "two",
        "may",
    ),
    *(
        "first",
        "other",
        "new",
        "made",
        "any",
        "like",
        "our",
        "most",
        "many",
        "work",
        "place",
        "point",
        "part",
        "small",
    ),
    *("large", "great", "long", "high", "right", "left", "early", "young", "old", "next", "same", "able"),
)
_MASK = (1 << 64) - 1


def seed_of(body: dict[str, Any], salt: str = "") -> int:
    """A 64-bit seed from a decoded request body; `salt` keeps endpoints and choices apart."""
    kept = {k: v for k, v in body.items() if k not in _IGNORED}
    return seed_of_bytes(msgspec.json.encode(kept, order="deterministic"), salt)


def seed_of_bytes(data: bytes, salt: str = "") -> int:
    """A 64-bit seed from raw bytes."""
    return int.from_bytes(blake2b(data, digest_size=8, person=salt.encode()[:16]).digest(), "big")


def ident(prefix: str, seed: int) -> str:
    """An object id such as `chatcmpl-…`, 32 hex digits, always the same for the same seed."""
    return prefix + blake2b(seed.to_bytes(8, "big"), digest_size=16).hexdigest()


def draws(seed: int) -> Iterator[int]:
    """An endless splitmix64 sequence (Steele, Lea, Flood 2014)."""
    state = seed & _MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        yield z ^ (z >> 31)


def words(seed: int) -> Iterator[str]:
    """An endless sequence of tokens of text; every one but the first begins with a space."""
    numbers = draws(seed)
    count = len(_WORDS)
    yield _WORDS[next(numbers) % count].capitalize()
    for number in numbers:
        yield " " + _WORDS[number % count]


def natural_length(seed: int) -> int:
    """How many tokens the answer has when nothing cuts it short: 8 to 39."""
    return 8 + next(draws(seed ^ 0x5EED)) % 32


def vector(seed: int, dimensions: int) -> list[float]:
    """A unit vector, exactly representable in float32 so that both encodings carry the same numbers."""
    numbers = draws(seed)
    raw = [next(numbers) / _MASK - 0.5 for _ in range(dimensions)]
    norm = sum(x * x for x in raw) ** 0.5 or 1.0
    packed = struct.pack(f"<{dimensions}f", *(x / norm for x in raw))
    return list(struct.unpack(f"<{dimensions}f", packed))
