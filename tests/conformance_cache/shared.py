"""L1 as the suite sees it: two objects of this process and one of another, all on one arena."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.entry import pack
from penstock.cache.epoch import Epochs, name_of_key, name_of_model, name_of_tenant
from penstock.cache.l1 import L1

from .machine import MOST_BYTES
from .neighbour import Neighbour
from .target import Found, Subject

SLOTS = 6
_SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

#: Nothing is ever dropped from it in a run of the suite.
ROOMY = ArenaGeometry.of(4 << 20, MOST_BYTES, SLOTS)
#: Room for some ten answers, so that nearly every put drops another.
TINY = ArenaGeometry.of(ArenaGeometry.smallest(MOST_BYTES, SLOTS), MOST_BYTES, SLOTS)


class Lives:
    """Which generation of each slot lives: the latest."""

    def __init__(self) -> None:
        self._latest = [0] * SLOTS

    def next(self, slot: int) -> tuple[int, int]:
        """Slot and generation of a new life; the one before it is dead from now on."""
        self._latest[slot] += 1
        return slot, self._latest[slot]

    def alive(self, slot: int, generation: int) -> bool:
        return self._latest[slot] == generation


class Flusher:
    """Flushes as an operator does, with a nonce that was never used."""

    def __init__(self, *nodes: Epochs) -> None:
        self._nodes = nodes
        self._random = Random(7)

    def __call__(self, kind: str, subject: Subject) -> None:
        name = {
            "all": "all",
            "model": name_of_model(subject.model),
            "tenant": name_of_tenant(subject.tenant),
            "key": name_of_key(subject.key),
        }[kind]
        nonce = self._random.getrandbits(64)
        for node in self._nodes:
            node.set(name, nonce)


@contextmanager
def arena_path() -> Iterator[str]:
    """A name for an arena in shared memory, for as long as somebody opens it."""
    with tempfile.TemporaryDirectory(prefix="penstock-suite-", dir=_SHARED_MEMORY) as folder:
        yield os.path.join(folder, "arena")


class Shared:
    """Views 0 and 1 are here, view 2 is `neighbour`, a process of its own."""

    views = writers = latest = 3
    removes = True

    def __init__(self, geometry: ArenaGeometry, neighbour: Neighbour, *, forgets: bool) -> None:
        self.forgets = forgets
        self._lives = Lives()
        self._neighbour = neighbour
        with arena_path() as path:
            first = Arena.create(path, geometry, 0)
            self._arenas = [first, Arena.attach(first.fd)]
            neighbour.open(path, *self._lives.next(2))
        self._l1s = [L1(a, self._lives.next(i), self._alive) for i, a in enumerate(self._arenas)]
        self._flush = Flusher(first.epochs)

    def ask(self, view: int, subject: Subject) -> object:
        if view == 2:
            return self._neighbour.stamp(subject.model, subject.tenant, subject.key)
        epochs = self._arenas[view].epochs
        return epochs.stamp(epochs.scope(subject.model, subject.tenant), subject.key)

    def put(self, view: int, subject: Subject, asked: object, now_ms: int, ttl_ms: int, value: bytes) -> bool:
        assert isinstance(asked, int)
        packed = pack(subject.key, asked, now_ms, now_ms + ttl_ms, value)
        if view == 2:
            return self._neighbour.put(subject.key, packed, now_ms)
        return self._l1s[view].put(subject.key, packed, now_ms)

    def get(self, view: int, subject: Subject, now_ms: int) -> Found | None:
        stamp = self.ask(view, subject)
        assert isinstance(stamp, int)
        if view == 2:
            return self._neighbour.get(subject.key, stamp, now_ms)
        entry = self._l1s[view].get(subject.key, stamp, now_ms)
        return None if entry is None else Found(entry.value, entry.created_ms, entry.expires_ms)

    def remove(self, view: int, subject: Subject) -> None:
        if view == 2:
            self._neighbour.remove(subject.key)
        else:
            self._l1s[view].remove(subject.key)

    def flush(self, kind: str, subject: Subject) -> None:
        self._flush(kind, subject)

    def restart(self, view: int) -> None:
        life = self._lives.next(view)
        if view == 2:
            self._neighbour.again(*life)
        else:
            self._l1s[view] = L1(self._arenas[view], life, self._alive)

    def close(self) -> None:
        self._neighbour.forget()
        self._l1s.clear()
        for arena in reversed(self._arenas):
            arena.close()

    def _alive(self, slot: int, generation: int) -> bool:
        return self._lives.alive(slot, generation)
