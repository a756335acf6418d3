"""Looking at an entry of L1 without asking for it: for operators, who know a key but not who asked.

Strategy: as in `l1.py`, believe nothing but bytes whose checksum and key are right. Stamp and expiry are told, not
judged, and nothing counts as read.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from .arena import WAYS, Arena
from .counts import Counts
from .digest import Key
from .entry import BODY_AT, FORMAT, TAIL, VALUE_AT, Entry
from .index import LENGTH, LENGTH_SHIFT, LOCATION, PLACE, Index


@dataclass(frozen=True, slots=True)
class Peeked:
    """An entry whose bytes are whole. stamp: the sum of the epochs it was stored under. size_bytes: what it takes."""

    entry: Entry
    stamp: int
    size_bytes: int


def peek(arena: Arena, key: Key) -> Peeked | None:
    """The key's entry, expired or flushed ones too; None when there is none that is whole."""
    index = Index(arena, Counts())
    home, _ = PLACE.unpack(key)
    for at in index.of_key(key, home & index.mask & -WAYS):
        word = index.words[at]
        begin, size_bytes = word & LOCATION, word >> LENGTH_SHIFT & LENGTH
        whole = arena.map[begin : begin + size_bytes]
        body = whole[BODY_AT:]
        if len(body) < VALUE_AT or not body.startswith(key):
            continue
        if xxhash.xxh3_64_intdigest(body) != int.from_bytes(whole[:BODY_AT], "little"):
            continue
        stamp, created_ms, expires_ms, end = TAIL.unpack_from(body)
        end -= FORMAT
        if VALUE_AT <= end <= len(body):
            return Peeked(Entry(body, end, created_ms, expires_ms), stamp, size_bytes)
    return None
