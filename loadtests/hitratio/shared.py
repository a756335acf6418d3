"""The cache under test: Penstock's own L1, the real code over a real arena, fed with packed entries.

An arena has exactly the bytes every other policy has; its header, epoch cells and index are inside them. Entries never
expire and nothing is flushed here, so that only room decides. With more than one worker the requests are dealt out in
turn, as several processes would get them, and each worker has an open segment of its own.
"""

from __future__ import annotations

from hashlib import sha256
from types import TracebackType

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import BODY_AT, VALUE_AT, pack
from penstock.cache.l1 import L1

#: What an entry costs beside its value, in bytes, before it is rounded up; every policy is charged it.
HEAD_BYTES = BODY_AT + VALUE_AT

_NOW_MS = 1_700_000_000_000
_FOREVER_MS = _NOW_MS * 2
_STAMP = 0
#: The largest value kept unless the cache is too small for it, the gateway's own default; and how small that is.
_MAX_VALUE_BYTES = 2 << 20
_PART = 32


def largest_entry(capacity: int) -> int:
    """The largest entry that a cache of `capacity` bytes keeps, head included."""
    return max(HEAD_BYTES + 1, min(HEAD_BYTES + _MAX_VALUE_BYTES, capacity // _PART))


class SharedL1:
    """L1 of `capacity` bytes in all, read and written by `workers` in turn. Closes as a context."""

    __slots__ = ("_arenas", "_keys", "_l1s", "_now_ms", "_value", "geometry")

    def __init__(self, capacity: int, largest: int, workers: int) -> None:
        """`largest`: the largest entry kept, head included. Raises ValueError when no arena is that small."""
        self.geometry = ArenaGeometry.of(capacity, largest - HEAD_BYTES, 2 * workers)  # a slot each is spare
        first = Arena.create(None, self.geometry, 0)
        self._arenas = [first, *(Arena.attach(first.fd) for _ in range(1, workers))]
        self._l1s = [L1(arena, (slot, 1), lambda *life: True) for slot, arena in enumerate(self._arenas)]
        self._keys: dict[int, Key] = {}
        self._value = bytes(largest - HEAD_BYTES)
        self._now_ms = _NOW_MS

    def __enter__(self) -> SharedL1:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._l1s.clear()
        for arena in self._arenas:
            arena.close()

    def request(self, key: int, size: int) -> bool:
        self._now_ms = now_ms = self._now_ms + 1
        l1 = self._l1s[now_ms % len(self._l1s)]
        digest = self._keys.get(key)
        if digest is None:
            digest = self._keys[key] = Key(sha256(key.to_bytes(8, "big")).digest())
        if l1.get(digest, _STAMP, now_ms) is not None:
            return True
        l1.put(digest, pack(digest, _STAMP, now_ms, _FOREVER_MS, self._value[: size - HEAD_BYTES]), now_ms)
        return False
