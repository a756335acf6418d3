"""The simplest cache that does all of it: a dict. It shows that the suite can be passed, and what is meant."""

from __future__ import annotations

from collections import Counter

from .target import Found, Subject


class Plain:
    """One dict for all views. A flush raises a number; an answer is good while its numbers are the present ones."""

    views = writers = latest = 3
    forgets = False
    removes = True

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[object, Found]] = {}
        self._flushes: Counter[tuple[str, object]] = Counter()

    def ask(self, view: int, subject: Subject) -> object:
        return tuple(self._flushes[name] for name in self._names(subject).items())

    def put(self, view: int, subject: Subject, asked: object, now_ms: int, ttl_ms: int, value: bytes) -> bool:
        self._kept[subject.key] = asked, Found(value, now_ms, now_ms + ttl_ms)
        return True

    def get(self, view: int, subject: Subject, now_ms: int) -> Found | None:
        asked, found = self._kept.get(subject.key, (None, None))
        good = found is not None and asked == self.ask(view, subject) and found.expires_ms > now_ms
        return found if good else None

    def remove(self, view: int, subject: Subject) -> None:
        self._kept.pop(subject.key, None)

    def flush(self, kind: str, subject: Subject) -> None:
        self._flushes[kind, self._names(subject)[kind]] += 1

    def restart(self, view: int) -> None:
        """There is no process behind it."""

    def close(self) -> None:
        self._kept.clear()

    @staticmethod
    def _names(subject: Subject) -> dict[str, object]:
        return {"all": None, "model": subject.model, "tenant": subject.tenant, "key": subject.key}
