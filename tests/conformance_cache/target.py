"""What the suite asks of a cache, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.cache.digest import Key


@dataclass(frozen=True, slots=True)
class Subject:
    """What an answer is about. name: for people."""

    name: str
    model: str
    tenant: str
    key: Key

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that a cache gave."""

    value: bytes
    created_ms: int
    expires_ms: int


class Target(Protocol):
    """A cache seen through several views: processes, or objects that stand for them. Times are the test's own."""

    views: int
    """How many; they are numbered from 0, and any may `get`."""

    writers: int
    """The first so many may `put` and `remove`."""

    latest: int
    """The first so many give the last answer that was put, or none; the others may give an older one while it lives,
    as another node does that has a copy of its own."""

    forgets: bool
    """Whether a living answer may be missing."""

    removes: bool
    """Whether it can be told to forget one key."""

    def ask(self, view: int, subject: Subject) -> object:
        """The question is asked: what must be given to `put` with its answer."""
        ...

    def put(self, view: int, subject: Subject, asked: object, now_ms: int, ttl_ms: int, value: bytes) -> bool:
        """Store an answer; False when it was not."""
        ...

    def get(self, view: int, subject: Subject, now_ms: int) -> Found | None: ...

    def remove(self, view: int, subject: Subject) -> None: ...

    def flush(self, kind: str, subject: Subject) -> None:
        """kind: "all", or "model", "tenant", "key" of the subject; on every node."""
        ...

    def restart(self, view: int) -> None:
        """The process behind a view ends without a word, and another takes its place."""
        ...

    def close(self) -> None: ...
